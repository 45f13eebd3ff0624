//! Where events go: JSON lines on standard error, or readable text on a terminal.

/// A log; cheap to clone.
#[derive(Debug, Clone)]
pub struct Log;
