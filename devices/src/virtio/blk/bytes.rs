//! What a disk's bytes are in.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// Makes a file that has the bytes of the base.
pub(super) type Make = Box<dyn FnMut(&File) -> io::Result<File> + Send>;

/// A file, or what is one from the first write on.
pub(super) enum Bytes {
    File(File),
    Base { base: Arc<File>, make: Make },
}

impl Bytes {
    /// What is read.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::File(file) => file,
            Self::Base { base, .. } => base,
        }
    }

    /// What is written: made now if need be.
    pub(super) fn own(&mut self) -> io::Result<&File> {
        if let Self::Base { base, make } = self {
            *self = Self::File(make(base)?);
        }
        Ok(self.file())
    }

    /// Makes everything that was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_data(),
            Self::Base { .. } => Ok(()),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::File(_) => "File",
            Self::Base { .. } => "Base",
        };
        f.debug_tuple(name).field(self.file()).finish()
    }
}
