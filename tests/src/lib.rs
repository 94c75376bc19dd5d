//! servin: work in progress.
