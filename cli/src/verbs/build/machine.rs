//! The machines of a build: one for each `RUN`, and one for each copy or commit of files.

use std::time::Instant;

use servin_engine::Error as Failure;
use servin_engine::container::{self, Request};
use servin_engine::files::{Client, FilesAsk, TarWriter, Told};
use servin_engine::image::{Composed, Image, Images};
use servin_engine::monitor::wire::{Ask, Failure as Failed};
use servin_engine::monitor::{Launch, What};

use crate::args::Global;
use crate::error::{Error, Result};
use crate::session::{self, End, Session, Watch};
use crate::verbs::containers::{lost, open};
use crate::verbs::files::server;
use crate::verbs::{data_root, store, wait};

/// A container of the build, which goes when this does.
pub(super) struct Container<'a> {
    global: &'a Global,
    pub(super) id: String,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let removed = open(self.global).and_then(|store| {
            let record = store.containers().find(&self.id)?;
            Ok(container::remove(&store, &record, true)?)
        });
        if let Err(error) = removed {
            log::error!("cannot remove a container of the build: {error}");
        }
    }
}

impl<'a> Container<'a> {
    /// One that does not run.
    pub(super) fn create(global: &'a Global, request: &Request) -> Result<Self> {
        let store = open(global)?;
        let record = container::create(&store, request)?;
        Ok(Container { global, id: record.id })
    }

    /// One that ran, and its exit code. With `warm` from a template, or to leave one: an image between two steps is not worth
    /// it. Its output is ours, but for a quiet one, whose is kept from the user.
    pub(super) fn run(global: &'a Global, request: Request, warm: bool, quiet: bool) -> Result<(Self, i32)> {
        let watch = Watch { sig_proxy: !quiet, detach: quiet, ..Watch::default() };
        let host = |what: &str| {
            let what = what.to_owned();
            move |source| Error::Host { what, source, code: 1 }
        };
        let signals = session::signals(&watch).map_err(host("take signals over"))?;
        let launch = Launch {
            data_root: Some(data_root(global)?),
            size: None,
            began: Instant::now(),
            keep_stderr: global.log_level >= log::LevelFilter::Debug,
            warm,
            trace: None,
            what: What::Run(Box::new(Request { detach: quiet, ..request })),
        };
        let stream = launch.fork()?;
        let mut made = Container { global, id: String::new() };
        let created = |id: &str| made.id = id.to_owned();
        let mut session = Session::new(stream, watch, signals, created).map_err(host("watch the program"))?;
        let end = session.run();
        drop(session);
        servin_engine::process::release_signals();
        match end {
            End::Exited(exit) => Ok((made, exit.code.into())),
            End::Detached => {
                let code = {
                    let store = open(global)?;
                    let record = store.containers().find(&made.id)?;
                    wait::exit_code(&store, &record, &Ask::Wait)?
                };
                Ok((made, code))
            }
            End::Failed(failure) => Err(Error::Monitor(Failed { code: 1, ..failure })),
            End::Lost => Err(lost(global, &made.id, 1)),
        }
    }

    /// Speaks with a file server in it.
    pub(super) fn files(&self) -> Result<Client> {
        Ok(server(self.global, Instant::now(), &self.id)?.1)
    }

    /// Makes an image of what was changed in it.
    pub(super) fn commit(&self, base: &Image, composed: &Composed) -> Result<Image> {
        let mut client = self.files()?;
        let store = store(self.global)?;
        let images = Images::new(&store);
        let made = images.commit(base, composed, &mut |out| {
            client.ask(&FilesAsk::Layer { pause: false })?;
            let mut tar = TarWriter::new(out);
            tar.receive(&mut client, &|path| Some(path.to_vec()))?;
            tar.finish().map_err(|source| Failure::io("write", "the layer", source))?;
            // Before the image is recorded: of a commit that fails there is none.
            client.finish()
        })?;
        Ok(images.find(&made.id.to_string())?)
    }
}

/// A small file of the container; `None` if there is none.
pub(super) fn read_file(client: &mut Client, path: &[u8]) -> Result<Option<Vec<u8>>> {
    /// A password file is not larger.
    const MOST: usize = 4 << 20;
    if client.stat(path, true)?.is_none() {
        return Ok(None);
    }
    client.ask(&FilesAsk::Read { path: path.to_vec(), follow: true })?;
    let mut content = Vec::new();
    while let Some(told) = client.told()? {
        if let Told::Data(data) = told
            && content.len() < MOST
        {
            content.extend_from_slice(&data);
        }
    }
    Ok(Some(content))
}
