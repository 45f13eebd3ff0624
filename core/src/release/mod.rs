//! What this release is, and how it proves that (protocol.md section 8).

pub mod artifact;
pub mod entry;
pub mod gunzip;
pub mod integrity;
pub mod latest;
pub mod manifest;
pub mod signature;
pub mod verify;
pub mod version;
