//! Making releases: the tarball, and the version of the sources.

pub mod build;
pub mod workspace;
