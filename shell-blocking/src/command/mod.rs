//! The command line, the same for both shells.

mod options;
