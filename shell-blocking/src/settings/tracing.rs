//! Settings of a trace.

use std::path::PathBuf;

use super::read::{read_number, read_path};
use super::{Setting, Sources, UsageError};

/// How a node is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// The file, not there yet.
    pub path: PathBuf,
    /// Whether with all that a replay needs: the private key, the seed, the plaintext of clients.
    pub secrets: bool,
    /// The longest it may get, in bytes.
    pub limit: u64,
}

const TRACE: Setting<PathBuf> =
    Setting::new("--trace", &[], "the path of a file that is not there yet", read_path);
const LIMIT: Setting<u64> =
    Setting::new("--trace-limit", &[], "a whole number of MiB from 1 to 1024", |text| {
        read_number(text, 1, 1024)
    });

impl Sources<'_> {
    /// How the node is recorded, if it is.
    ///
    /// # Errors
    /// A wrong value, or an option of a trace without one.
    pub fn tracing(&self) -> Result<Option<Tracing>, UsageError> {
        let (path, limit, secrets) = (self.get(&TRACE)?, self.get(&LIMIT)?, self.switch("--trace-secrets"));
        match path {
            Some(path) => Ok(Some(Tracing { path, secrets, limit: limit.unwrap_or(256) * 1024 * 1024 })),
            None if limit.is_some() || secrets => {
                Err(UsageError::new("--trace-limit and --trace-secrets need --trace FILE"))
            }
            None => Ok(None),
        }
    }
}
