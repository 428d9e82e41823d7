//! Private folders of ingests.

use super::{Error, Limits, Store};

/// A private folder, removed on drop.
#[derive(Debug)]
pub(crate) struct Staging {}

impl Staging {
    pub(crate) fn create_erofs(&self) -> Result<std::fs::File, Error> {
        todo!()
    }
}

impl Store {
    pub(crate) fn staging(&self) -> Result<Staging, Error> {
        todo!()
    }
    pub(crate) fn limits(&self) -> &Limits {
        todo!()
    }
}
