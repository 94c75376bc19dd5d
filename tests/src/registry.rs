//! A registry on loopback: docker-registry of Debian's package.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::DEADLINE;
use crate::packages;

/// The one account.
const USERS: &str = "servin:$2y$05$KTefPcdqlBNfXCuLPQ0lBOrKrq8sKA0rm.6JmiGXEaM0RHVz8k8e2\n";

/// A registry with data of its own; it ends with this.
#[derive(Debug)]
pub struct Registry {
    /// Its address and port.
    pub host: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// A registry for everybody, or for the user `servin` with the password `s3cret`. `None`, and a line that says so, where
    /// the program cannot be had.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(guarded: bool) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let host = free.expect("a port").to_string();
        let users = dir.path().join("users");
        fs::write(&users, USERS).expect("a file");
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n{}",
            dir.path().join("data").display(),
            if guarded { &auth } else { "" }
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(packages::host_program("docker-registry")?);
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let child = command.spawn().expect("docker-registry starts");
        let registry = Registry { host, child, _dir: dir };
        let began = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(began.elapsed() < DEADLINE, "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// What servin calls an image there.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    /// Asks for a path below `/v2/` by HTTP, with a body of this kind or a wish for one: the status and the answer.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let head = format!(
            "{method} /v2/{path} HTTP/1.0\r\nHost: {}\r\nAccept: {kind}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        let mut stream = TcpStream::connect(&self.host).expect("a connection");
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        sent.expect("the question is taken");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|word| word.parse().ok());
        (status.expect("a status"), answer.split_off(end + 4))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
