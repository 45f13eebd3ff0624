//! How a node gets from one release to the next, and back where the next is no good (design.md, "An updater that
//! cannot brick a node").

pub mod install;
pub mod records;
