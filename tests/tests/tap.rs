//! The network card on a tap of the host's kernel. Root makes the tap with busybox's `tunctl` or iproute2's `ip`;
//! where neither can, the tests print `skipped: ...`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";
const PATIENCE: Duration = Duration::from_secs(120);

fn does(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
}

/// A tap of this name that goes with the test.
struct Tap(&'static str);

impl Tap {
    fn new(name: &'static str) -> Option<Self> {
        does("modprobe tun");
        if does(&format!("tunctl -t {name}")) || does(&format!("ip tuntap add dev {name} mode tap")) {
            return Some(Tap(name));
        }
        println!("skipped: no tap can be made here");
        None
    }

    fn up(&self, address: &str) {
        let Tap(name) = self;
        assert!(does(&format!("ip address add {address} dev {name}")), "no address for {name}");
        assert!(does(&format!("ip link set dev {name} up")), "{name} does not come up");
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let Tap(name) = self;
        let _ = does(&format!("tunctl -d {name}")) || does(&format!("ip link del {name}"));
    }
}

/// The container's connection, if it comes in time.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("nonblocking");
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).expect("blocking");
                return (stream, from);
            }
            Err(error) => assert!(began.elapsed() < PATIENCE, "no connection from the container: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Connects until the server in the container is there.
fn reach(address: &str) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_wrong_with_a_tap_is_said_with_what_to_do() {
    let Some(servin) = Servin::new() else { return };
    let refused = |network: &str, why: &str| {
        let outcome = servin.go(&["run", "--rm", "--network", network, BASE, "true"]);
        assert_eq!(outcome.code, Some(125), "{outcome:?}");
        assert!(outcome.stderr.contains(why), "{network}: {}", outcome.stderr);
        assert_eq!(servin.go(&["ps", "-aq"]).text(), "");
    };
    refused("tap:svn-none", "make one with \"ip tuntap add dev svn-none mode tap user $USER\"");
    refused("tap:lo", "another kind");
    let Some(tap) = Tap::new("svn-err") else { return };
    refused("tap:svn-err", "bring it up with \"ip link set dev svn-err up\"");
    tap.up("10.0.2.2/24");
    let holds = ["run", "-d", "--name", "holds", "--network", "tap:svn-err", BASE, "sleep", "1000"];
    assert_eq!(servin.go(&holds).code, Some(0));
    let busy = servin.go(&["run", "--rm", "--network", "tap:svn-err", BASE, "true"]);
    assert_eq!(busy.code, Some(125), "{busy:?}");
    assert!(busy.stderr.contains("something else has it"), "{}", busy.stderr);
    let inspected = servin.go(&["inspect", "holds"]).text();
    for part in ["\"NetworkMode\": \"tap\"", "\"IPAddress\": \"10.0.2.15\"", "02:42:0a:00:02:0f"] {
        assert!(inspected.contains(part), "{part} is not in {inspected}");
    }
    servin.go(&["rm", "-f", "holds"]).expect(0, "holds\n");
}

#[test]
fn a_container_on_a_tap_reaches_the_host_and_is_reached_at_its_own_address() {
    let (Some(servin), Some(tap)) = (Servin::new(), Tap::new("svn-tap")) else { return };
    tap.up("192.168.77.1/24");
    let listener = TcpListener::bind("192.168.77.1:0").expect("the tap's address");
    let port = listener.local_addr().expect("bound").port();
    let sent: Vec<u8> = (0..3 << 20).map(|at: usize| (at / 251 + at) as u8).collect();
    let expected = sent.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, from) = accept(&listener);
        assert_eq!(from.ip().to_string(), "192.168.77.9");
        stream.write_all(&sent).expect("sent");
        drop(stream);
        let (mut stream, _) = accept(&listener);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("received");
        assert!(got == expected, "what came back differs");
    });
    let script = format!(
        "ping -c 1 -W 20 192.168.77.1 >/dev/null && echo pong; cat /sys/class/net/eth0/address; \
         ip -o address show eth0 | sed 's/.*inet6* \\([^ ]*\\) .*/\\1/'; ip -6 route show default; \
         nc 192.168.77.1 {port} </dev/null >/tmp/got; nc 192.168.77.1 {port} </tmp/got; \
         mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www"
    );
    let network = "tap:svn-tap,subnet=192.168.77.0/24";
    let run = ["run", "-d", "--name", "web", "--network", network, "--ip", "192.168.77.9"];
    assert_eq!(servin.go(&[&run[..], &[BASE, "sh", "-c", &script]].concat()).code, Some(0));
    assert!(server.join().is_ok(), "{:?}", servin.go(&["logs", "web"]));
    let mut stream = reach("192.168.77.9:80");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert!(answer.ends_with(b"page\n"), "{}", String::from_utf8_lossy(&answer));
    servin.go(&["logs", "web"]).expect(0, "pong\n02:42:c0:a8:4d:09\n192.168.77.9/24\n");
    // It gets the tap again.
    servin.go(&["restart", "-t", "0", "web"]).expect(0, "web\n");
    let again = servin.go(&["exec", "web", "ping", "-c", "1", "-W", "20", "192.168.77.1"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    // A cable that is pulled ends no container.
    drop(tap);
    if !std::path::Path::new("/sys/class/net/svn-tap").exists() {
        assert_ne!(servin.go(&["exec", "web", "ping", "-c", "1", "-W", "2", "192.168.77.1"]).code, Some(0));
    }
    servin.go(&["exec", "web", "echo", "lives"]).expect(0, "lives\n");
    servin.go(&["rm", "-f", "web"]).expect(0, "web\n");
}
