//! The command's end of the conversation. It waits for one thing at a time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use servin_init::proto::{Channel, Encode, FilesAsk, FilesTell, Frames, Node};

use super::ChangeKind;
use crate::container::connect;
use crate::monitor::wire::{Ask, Decoder, Hello, INPUT_WINDOW, MOST_DATA, Message, Tell, VERSION};
use crate::store::{Record, Store};
use crate::{Error, Result};

/// An answer; [`FilesTell::Done`] is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// A node.
    Node(Node),
    /// Data of the last node.
    Data(Vec<u8>),
    /// A difference, by its absolute path.
    Change(ChangeKind, Vec<u8>),
}

/// The conversation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    frames: Frames,
    /// Bytes of input that may be sent.
    credit: usize,
    /// Why nothing more comes.
    ended: Option<String>,
}

impl Client {
    /// With a file server beside a container that runs.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn beside(store: &Store, record: &Record) -> Result<Self> {
        let mut client = Client::over(connect(store, record)?);
        client.say(&Ask::Hello(Hello { version: VERSION }))?;
        client.say(&Ask::Files)?;
        Ok(client)
    }

    /// With the file server that a monitor was started for ([`crate::monitor::What::Files`]).
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Client {
            stream,
            decoder: Decoder::default(),
            frames: Frames::new(Channel::GuestFiles),
            credit: INPUT_WINDOW,
            ended: None,
        }
    }

    fn fail(what: &str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::Files { what: what.to_owned(), source }
    }

    fn say(&mut self, ask: &Ask) -> Result<()> {
        let mut frame = Vec::new();
        ask.encode(&mut frame);
        match self.stream.write_all(&frame) {
            // Why the other side is gone is told by what it said last.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                while self.ended.is_none() {
                    self.receive()?;
                }
                Err(self.gone())
            }
            done => done.map_err(Self::fail("speak with the container's monitor")),
        }
    }

    fn gone(&self) -> Error {
        let why = self.ended.clone().unwrap_or_default();
        Error::Files { what: "speak with the container's file server".into(), source: io::Error::other(why) }
    }

    /// Takes what has arrived, or waits for it.
    fn receive(&mut self) -> Result<()> {
        let malformed =
            |_| Self::fail("speak with the container's monitor")(io::ErrorKind::InvalidData.into());
        loop {
            match self.decoder.next_message::<Tell>().map_err(malformed)? {
                None => break,
                Some(Tell::Stdout(data)) => {
                    self.frames.push(&data);
                    return Ok(());
                }
                Some(Tell::InputTaken(count)) => {
                    self.credit = self.credit.saturating_add(count as usize);
                    return Ok(());
                }
                Some(Tell::Failed(failure)) => {
                    self.ended = Some(failure.text);
                    return Ok(());
                }
                Some(Tell::Exited(exit)) => {
                    self.ended = Some(format!("it ended with code {}", exit.code));
                    return Ok(());
                }
                Some(_) => {}
            }
        }
        let mut buffer = [0; MOST_DATA];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = Some("its monitor is gone".into()),
            Ok(count) => self.decoder.push(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Self::fail("speak with the container's monitor")(error)),
        }
        Ok(())
    }

    /// Sends a part of a question.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn ask(&mut self, ask: &FilesAsk<'_>) -> Result<()> {
        let frame = ask
            .to_frame()
            .map_err(|error| Self::fail("ask the container's file server")(io::Error::other(error)))?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            while self.credit == 0 {
                if self.ended.is_some() {
                    return Err(self.gone());
                }
                self.receive()?;
            }
            let (now, later) = rest.split_at(rest.len().min(self.credit).min(MOST_DATA));
            self.say(&Ask::Stdin(now.to_vec()))?;
            self.credit -= now.len();
            rest = later;
        }
        Ok(())
    }

    /// The next part of the answer; `None` at its end.
    ///
    /// # Errors
    /// What was asked could not be done ([`Error::Files`]), or the other side is gone.
    pub fn told(&mut self) -> Result<Option<Told>> {
        loop {
            let broken =
                |error| Self::fail("understand the container's file server")(io::Error::other(error));
            if let Some(frame) = self.frames.next_frame().map_err(broken)? {
                return match FilesTell::decode(frame).map_err(broken)? {
                    FilesTell::Node(node) => Ok(Some(Told::Node(node))),
                    FilesTell::Data(data) => Ok(Some(Told::Data(data.to_vec()))),
                    FilesTell::Change { kind, path } => Ok(Some(Told::Change(kind, path))),
                    FilesTell::Done => Ok(None),
                    FilesTell::Failed { errno, message } => Err(Error::Files {
                        what: format!("{message} in the container"),
                        source: match errno {
                            0 => io::Error::other("it is not possible"),
                            errno => crate::os::guest_error(errno),
                        },
                    }),
                };
            }
            if self.ended.is_some() {
                return Err(self.gone());
            }
            self.receive()?;
        }
    }

    /// The one node that answers [`FilesAsk::Stat`]; `None` if there is nothing at the path.
    ///
    /// # Errors
    /// As [`Client::told`].
    pub fn stat(&mut self, path: &[u8], follow: bool) -> Result<Option<Node>> {
        self.ask(&FilesAsk::Stat { path: path.to_vec(), follow })?;
        let mut found = None;
        loop {
            match self.told() {
                Ok(Some(Told::Node(node))) => found = Some(node),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(found),
                Err(Error::Files { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for an answer that is nothing but done.
    ///
    /// # Errors
    /// As [`Client::told`].
    pub fn done(&mut self) -> Result<()> {
        while self.told()?.is_some() {}
        Ok(())
    }

    /// Ends the server, and waits until everything that it wrote is safe with the container.
    ///
    /// # Errors
    /// The other side is gone before it said so.
    pub fn finish(&mut self) -> Result<()> {
        self.say(&Ask::StdinEof)?;
        while self.ended.is_none() {
            self.receive()?;
        }
        match self.ended.as_deref() {
            Some("it ended with code 0") => Ok(()),
            _ => Err(self.gone()),
        }
    }
}
