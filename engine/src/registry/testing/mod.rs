//! A registry for tests: in this process, on loopback, with faults to order.
//!
//! `server.crt` and `server.key` are for 127.0.0.1 and nothing else, signed by `ca.crt`, whose key is gone.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::{Accounts, Client, Patience, Settings};
use crate::image::Digest;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TIME: Duration = Duration::from_secs(60);

/// What goes wrong with an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    Status(u16),
    /// 429 with `Retry-After` in seconds.
    Asks(u64),
    Reset,
    /// So many bytes, and the end of the connection.
    Cut(usize),
    /// So many bytes, and silence until the client leaves.
    Stall(usize),
    Flip,
    Short,
    NoRange,
    /// No token is good any more.
    Expire,
    /// Not before the test says so.
    Held,
}

/// Who may come in.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Guard {
    Open,
    Basic(&'static str),
    /// Tokens from `/token`; without an account for reading only.
    Tokens(&'static str),
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    /// Path part, how often, and what.
    faults: Vec<(String, u32, Fault)>,
    pub(super) log: Vec<String>,
    tokens: Vec<String>,
    tokens_made: usize,
    held: bool,
}

pub(super) struct Fake {
    pub(super) host: String,
    shared: Arc<Shared>,
}

struct Shared {
    guard: Guard,
    /// Blobs are elsewhere.
    redirect: Option<String>,
    /// Requests that say who they are from are refused.
    anonymous: bool,
    tls: Option<Arc<rustls::ServerConfig>>,
    content: Mutex<Content>,
    released: Condvar,
    ended: Mutex<bool>,
}

impl Fake {
    pub(super) fn open() -> Self {
        Fake::start(Guard::Open, None, false, false)
    }

    pub(super) fn guarded(guard: Guard) -> Self {
        Fake::start(guard, None, false, false)
    }

    pub(super) fn over_tls() -> Self {
        Fake::start(Guard::Open, None, false, true)
    }

    pub(super) fn start(guard: Guard, redirect: Option<String>, anonymous: bool, tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tls = tls.then(|| {
            let chain = vec![CertificateDer::from_pem_slice(include_bytes!("server.crt")).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(include_bytes!("server.key")).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ServerConfig::builder_with_provider(provider);
            let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
            Arc::new(builder.with_single_cert(chain, key).unwrap())
        });
        let (content, released, ended) = Default::default();
        let shared = Arc::new(Shared { guard, redirect, anonymous, tls, content, released, ended });
        let host = listener.local_addr().unwrap().to_string();
        let ours = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if *ours.ended.lock().unwrap() {
                    return;
                }
                let ours = ours.clone();
                std::thread::spawn(move || ours.serve(stream));
            }
        });
        Fake { host, shared }
    }

    pub(super) fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap()
    }

    /// The next requests for a path with this part go wrong.
    pub(super) fn fault(&self, part: &str, times: u32, fault: Fault) {
        let mut content = self.content();
        content.held |= fault == Fault::Held;
        content.faults.push((part.to_owned(), times, fault));
    }

    pub(super) fn release(&self) {
        self.content().held = false;
        self.shared.released.notify_all();
    }

    pub(super) fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        self.content().blobs.insert(digest.clone(), bytes.to_vec());
        json!({ "digest": digest, "size": bytes.len() })
    }

    /// A manifest under a tag and its digest; its descriptor.
    pub(super) fn manifest(&self, repository: &str, tag: &str, media_type: &str, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        let mut content = self.content();
        for reference in [tag, &digest] {
            let entry = (media_type.to_owned(), bytes.clone());
            content.manifests.insert(format!("{repository}/manifests/{reference}"), entry);
        }
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// An image of layers, each with the tar inside; its manifest's descriptor.
    pub(super) fn image(
        &self,
        repository: &str,
        tag: &str,
        cpu: &str,
        layers: &[(Vec<u8>, Vec<u8>)],
    ) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, tar)| Digest::of(tar).to_string()).collect();
        self.image_of(repository, tag, cpu, layers, &diff_ids)
    }

    pub(super) fn image_of(
        &self,
        repository: &str,
        tag: &str,
        cpu: &str,
        layers: &[(Vec<u8>, Vec<u8>)],
        diff_ids: &[String],
    ) -> Value {
        let config = json!({
            "architecture": cpu, "os": "linux", "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": [],
        });
        let mut config = self.blob(config.to_string().as_bytes());
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        let layers: Vec<_> = layers
            .iter()
            .map(|(packed, _)| {
                let mut layer = self.blob(packed);
                layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
                layer
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        });
        self.manifest(repository, tag, OCI_MANIFEST, &manifest)
    }

    /// Requests so far with this method whose path has this part.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        let is_one = |line: &&String| line.starts_with(method) && line.contains(part);
        self.content().log.iter().filter(is_one).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        *self.shared.ended.lock().unwrap() = true;
        self.release();
        let _ = TcpStream::connect(&self.host);
    }
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Shared {
    fn serve(&self, socket: TcpStream) {
        socket.set_read_timeout(Some(TIME)).unwrap();
        let raw = socket.try_clone().unwrap();
        let done = match &self.tls {
            Some(config) => {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, socket);
                let done = self.answer(&mut stream, &raw);
                stream.conn.send_close_notify();
                let _ = stream.flush();
                done
            }
            None => self.answer(&mut &socket, &raw),
        };
        // Clients may go when they like.
        drop(done);
    }

    fn answer(&self, stream: &mut dyn Stream, raw: &TcpStream) -> io::Result<()> {
        let Some(request) = read_request(stream)? else { return Ok(()) };
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let fault = {
            let mut content = self.content.lock().unwrap();
            let who = request.headers.get("authorization").map_or("-", String::as_str);
            let range = request.headers.get("range").map_or("-", String::as_str);
            content.log.push(format!("{} {} {range} {who}", request.method, request.path));
            let at = content.faults.iter_mut().find(|(part, times, _)| *times > 0 && path.contains(part));
            let fault = at.map(|(_, times, fault)| {
                *times -= 1;
                fault.clone()
            });
            if fault == Some(Fault::Held) {
                let held = self.released.wait_timeout_while(content, TIME, |content| content.held);
                assert!(!held.unwrap().1.timed_out(), "nobody has released {path}");
            }
            fault
        };
        if fault == Some(Fault::Reset) {
            rustix::net::sockopt::set_socket_linger(raw, Some(Duration::ZERO))?;
            return Ok(());
        }
        let (mut status, mut headers, mut body) = match fault {
            Some(Fault::Status(status)) => (status, Vec::new(), b"{}".to_vec()),
            Some(Fault::Asks(seconds)) => (429, vec![format!("Retry-After: {seconds}")], Vec::new()),
            Some(Fault::Expire) => {
                self.content.lock().unwrap().tokens.clear();
                self.find(&request, path, query)
            }
            _ => self.find(&request, path, query),
        };
        match (&fault, request.headers.get("range")) {
            (Some(Fault::NoRange), _) | (_, None) => {}
            (_, Some(range)) if status == 200 => {
                let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
                let from: usize = from.unwrap().parse().unwrap();
                headers.push(format!("Content-Range: bytes {from}-{}/{}", body.len() - 1, body.len()));
                (status, body) = (206, body[from..].to_vec());
            }
            _ => {}
        }
        match fault {
            Some(Fault::Flip) => {
                let middle = body.len() / 2;
                body[middle] ^= 1;
            }
            Some(Fault::Short) => _ = body.pop(),
            _ => {}
        }
        let mut head =
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for header in headers {
            head.push_str(&header);
            head.push_str("\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        match fault {
            Some(Fault::Cut(bytes)) => stream.write_all(&body[..bytes.min(body.len())]),
            Some(Fault::Stall(bytes)) => {
                stream.write_all(&body[..bytes.min(body.len())])?;
                stream.flush()?;
                stream.read(&mut [0]).map(|_| ())
            }
            _ => stream.write_all(&body),
        }
    }

    fn find(&self, request: &Request, path: &str, query: &str) -> (u16, Vec<String>, Vec<u8>) {
        let mut content = self.content.lock().unwrap();
        let who = request.headers.get("authorization").cloned();
        if self.anonymous && who.is_some() {
            return (400, vec![], b"Only one auth mechanism allowed".to_vec());
        }
        if path == "/token" {
            let Guard::Tokens(account) = &self.guard else { panic!("no tokens here") };
            if who.as_ref().is_some_and(|who| who != account) {
                return (401, vec![], br#"{"details": "incorrect username or password"}"#.to_vec());
            }
            let name = format!("t{}-{}", content.tokens_made, if who.is_some() { "rw" } else { "ro" });
            content.tokens_made += 1;
            content.tokens.push(name.clone());
            return (200, vec![], json!({ "access_token": name, "expires_in": 60 }).to_string().into_bytes());
        }
        let host = request.headers.get("host").unwrap();
        let asks = match &self.guard {
            Guard::Open => None,
            Guard::Basic(account) => {
                (who.as_deref() != Some(account)).then(|| "Basic realm=\"test\"".to_owned())
            }
            Guard::Tokens(..) => {
                let name = who.as_ref().and_then(|who| who.strip_prefix("Bearer ")).unwrap_or_default();
                let writes = !matches!(request.method.as_str(), "GET" | "HEAD");
                let known = content.tokens.iter().any(|token| token == name);
                let may = known && (!writes || name.ends_with("rw"));
                (!may).then(|| format!("Bearer realm=\"http://{host}/token\",service=\"test\""))
            }
        };
        if let Some(asks) = asks {
            return (
                401,
                vec![format!("WWW-Authenticate: {asks}")],
                br#"{"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}"#.to_vec(),
            );
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return (404, vec![], vec![]) };
        let made = |location: String| (201, vec![format!("Location: {location}")], vec![]);
        match request.method.as_str() {
            _ if rest.is_empty() => (200, vec![], b"{}".to_vec()),
            "GET" | "HEAD" if rest.contains("/manifests/") => match content.manifests.get(rest) {
                Some((media_type, bytes)) => {
                    let digest = format!("Docker-Content-Digest: {}", Digest::of(bytes));
                    (200, vec![format!("Content-Type: {media_type}"), digest], bytes.clone())
                }
                None => (404, vec![], br#"{"errors": [{"message": "manifest unknown"}]}"#.to_vec()),
            },
            "GET" if self.redirect.is_some() => {
                let to = self.redirect.as_ref().unwrap();
                (307, vec![format!("Location: {to}{}", request.path)], vec![])
            }
            "GET" | "HEAD" if rest.contains("/blobs/") => {
                let (_, digest) = rest.rsplit_once('/').unwrap();
                content.blobs.get(digest).map_or((404, vec![], vec![]), |bytes| (200, vec![], bytes.clone()))
            }
            "POST" if query.starts_with("mount=") => made(request.path.clone()),
            "POST" => (202, vec![format!("Location: {path}session?state=a%2Fb")], vec![]),
            "PUT" if rest.contains("/blobs/uploads/session") => {
                let (state, digest) = query.split_once("&digest=").unwrap();
                assert_eq!((state, digest), ("state=a%2Fb", Digest::of(&request.body).to_string().as_str()));
                content.blobs.insert(digest.to_owned(), request.body.clone());
                made(request.path.clone())
            }
            "PUT" => {
                let media_type = request.headers["content-type"].clone();
                content.manifests.insert(rest.to_owned(), (media_type, request.body.clone()));
                let (status, mut headers, body) = made(request.path.clone());
                headers.push(format!("Docker-Content-Digest: {}", Digest::of(&request.body)));
                (status, headers, body)
            }
            other => panic!("{other} {path}"),
        }
    }
}

fn read_request(stream: &mut dyn Stream) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
        // TLS, where none is spoken: as real servers do, leave at once.
        if head == [0x16] {
            return Ok(None);
        }
    }
    let Ok(text) = String::from_utf8(head) else { return Ok(None) };
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (first.next(), first.next()) else { return Ok(None) };
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Request { method, path, headers, body }))
}

/// Waits that a test can afford.
pub(super) fn patience() -> Patience {
    Patience {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(4),
        longest_asked: Duration::from_secs(5),
        connect: TIME,
        silence: TIME,
    }
}

/// A client whose accounts are in `dir`.
pub(super) fn client(dir: &Path, settings: Settings) -> Client {
    Client::new(settings, Accounts::in_files(&dir.join("auth.json"), None), patience())
}
