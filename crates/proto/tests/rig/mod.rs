//! What the tests and the fuzz targets share: connections joined in memory under simulated time.

pub(crate) mod auth_pair;
pub(crate) mod decoders;
pub(crate) mod link;
pub(crate) mod lone;
pub(crate) mod operations;
pub(crate) mod pair;
pub(crate) mod samples;
