//! Measurements: what is run, how often, and what the times mean. The shell only runs and times.

pub mod report;
