//! The network of containers: out to servers of the test, in by published ports, and none.
//!
//! Containers reach no loopback, so the servers need another address of this host: one that it has, or one that is
//! added to `lo` by root. Where there is neither, the tests that go out print `skipped: ...`.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";
/// Added to `lo` where the host has no address but the loopback's (RFC 5737).
const SPARE: &str = "198.51.100.77";
const PATIENCE: Duration = Duration::from_secs(120);

/// An address of this host that is not the loopback's.
fn outside() -> Option<IpAddr> {
    let route = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    if let Some(address) = route.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback()) {
        return Some(address);
    }
    let _ = Command::new("ip").args(["address", "add", &format!("{SPARE}/32"), "dev", "lo"]).output();
    if TcpListener::bind((SPARE, 0)).is_ok() {
        return SPARE.parse().ok();
    }
    println!("skipped: this host has no address but the loopback's, and none can be added");
    None
}

/// Serves one connection after another on a thread until `count` have been served.
fn serve(
    address: IpAddr,
    count: usize,
    mut one: impl FnMut(TcpStream) + Send + 'static,
) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().take(count) {
            let stream = stream.expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            one(stream);
        }
    });
    (port, thread)
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 251 + at) as u8).collect()
}

/// Asks until the server in the container is there.
fn get(address: &str) -> Vec<u8> {
    let began = Instant::now();
    loop {
        let mut answer = Vec::new();
        let done = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
            stream.read_to_end(&mut answer)
        });
        if done.is_ok() && !answer.is_empty() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "no answer from {address}: {done:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn thirty_megabytes_come_and_go_intact() {
    let (Some(servin), Some(address)) = (Servin::new(), outside()) else { return };
    let sent = bytes(30 << 20);
    let expected = sent.clone();
    let (down, sender) = serve(address, 1, move |mut stream| {
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).expect("a request") > 0);
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").and_then(|()| stream.write_all(&sent)).expect("sent");
    });
    let (up, receiver) = serve(address, 1, move |mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("received");
        assert!(got == expected, "{} bytes came back, and they differ", got.len());
        // The other direction is still open.
        stream.write_all(b"thanks\n").expect("sent");
    });
    let script = format!("wget -qO /tmp/x http://{address}:{down}/ && nc {address} {up} < /tmp/x");
    servin.go(&["run", "--rm", BASE, "sh", "-c", &script]).expect(0, "thanks\n");
    sender.join().expect("the sender");
    receiver.join().expect("the receiver");
}

#[test]
fn many_connections_at_once_are_all_served() {
    let (Some(servin), Some(address)) = (Servin::new(), outside()) else { return };
    let (port, server) = serve(address, 40, |mut stream| {
        let mut word = Vec::new();
        stream.read_to_end(&mut word).expect("a word");
        stream.write_all(&word).expect("sent");
    });
    let script = format!("for n in $(seq 40); do (echo w | nc {address} {port}) & done; wait");
    servin.go(&["run", "--rm", BASE, "sh", "-c", &script]).expect(0, &"w\n".repeat(40));
    server.join().expect("the server");
}

#[test]
fn a_clone_of_a_template_has_the_network_too() {
    let (Some(servin), Some(address)) = (Servin::new(), outside()) else { return };
    let (port, server) = serve(address, 2, |mut stream| stream.write_all(b"there\n").expect("sent"));
    let script = format!("nc {address} {port}; cat /etc/resolv.conf | head -1");
    for warm in [" cold", " warm"] {
        let outcome = servin.go(&["run", "--rm", "--timing", BASE, "sh", "-c", &script]);
        outcome.expect(0, "there\nnameserver 10.0.2.2\n");
        let line = outcome.stderr.lines().find(|line| line.starts_with("timing: start"));
        assert!(line.is_some_and(|line| line.ends_with(warm)), "{outcome:?}");
    }
    server.join().expect("the server");
}

#[test]
fn neither_the_gateway_nor_any_other_address_is_the_hosts_loopback() {
    let Some(servin) = Servin::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("nonblocking");
    let port = listener.local_addr().expect("bound").port();
    let script = format!(
        "for ip in 10.0.2.2 127.0.0.1 0.0.0.0 10.0.2.3; do nc -w 5 $ip {port} </dev/null && echo reached $ip; done; exit 3"
    );
    servin.go(&["run", "--rm", BASE, "sh", "-c", &script]).expect(3, "");
    assert!(listener.accept().is_err(), "the container reached the host's loopback");
}

#[test]
fn a_published_port_is_served_shown_and_given_back() {
    let Some(servin) = Servin::new() else { return };
    let run = ["run", "-d", "--name", "web", "-p", "127.0.0.1::80", BASE, "sh", "-c"];
    let script = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www";
    assert_eq!(servin.go(&[&run[..], &[script]].concat()).code, Some(0));
    let at = servin.go(&["port", "web", "80"]).text().trim().to_owned();
    assert!(at.starts_with("127.0.0.1:"), "{at}");
    let answer = get(&at);
    assert!(answer.ends_with(b"page\n"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(servin.go(&["port", "web"]).text(), format!("80/tcp -> {at}\n"));
    assert!(servin.go(&["ps"]).text().contains(&format!("{at}->80/tcp")));
    let format =
        "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}} {{.NetworkSettings.IPAddress}}";
    let port = at.rsplit(':').next().expect("a port");
    servin.go(&["inspect", "--format", format, "web"]).expect(0, &format!("{port} 10.0.2.15\n"));
    // A second container cannot have it, and is told so before it is made.
    let taken = servin.go(&["run", "--name", "late", "-p", &format!("{at}:80"), BASE, "true"]);
    assert_eq!(taken.code, Some(125), "{taken:?}");
    assert!(taken.stderr.contains(&at) && !servin.go(&["ps", "-a"]).text().contains("late"), "{taken:?}");
    servin.go(&["stop", "-t", "1", "web"]).expect(0, "web\n");
    drop(TcpListener::bind(&at).expect("the port is given back before the end is told"));
    servin.go(&["rm", "web"]).expect(0, "web\n");
}

#[test]
fn a_taken_port_is_an_error_before_anything_is_made() {
    let Some(servin) = Servin::on_any_host() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("bound").to_string();
    let outcome = servin.go(&["run", "-p", &format!("{at}:80"), BASE, "true"]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("cannot publish {at}/tcp")), "{outcome:?}");
    assert_eq!(servin.go(&["ps", "-aq"]).text(), "");
}

#[test]
fn without_a_network_there_is_the_loopback_alone() {
    let Some(servin) = Servin::new() else { return };
    let script =
        "ls /sys/class/net; ping -c 1 127.0.0.1 > /dev/null && echo lives; tail -1 /etc/hosts | cut -f1";
    servin
        .go(&["run", "--rm", "--network", "none", BASE, "sh", "-c", script])
        .expect(0, "lo\nlives\n127.0.1.1\n");
}

#[test]
fn names_and_addresses_are_what_was_asked_for() {
    let Some(servin) = Servin::new() else { return };
    let script = "hostname; tail -2 /etc/hosts; cat /etc/resolv.conf; cat /sys/class/net/eth0/address; \
                  ip -4 -o address show eth0 | sed 's/.*inet \\([^ ]*\\) .*/\\1/'; ping -c 1 10.0.2.2 > /dev/null && echo pong";
    let outcome = servin.go(&[
        "run",
        "--rm",
        "-h",
        "box",
        "--add-host",
        "db:10.9.8.7",
        "--dns",
        "9.9.9.9",
        "--dns-search",
        "example.org",
        "--dns-option",
        "ndots:2",
        "--mac-address",
        "02:42:ac:11:00:02",
        "--ip",
        "10.0.2.77",
        BASE,
        "sh",
        "-c",
        script,
    ]);
    outcome.expect(
        0,
        "box\n10.0.2.77\tbox\n10.9.8.7\tdb\nnameserver 9.9.9.9\nsearch example.org\noptions ndots:2\n\
         02:42:ac:11:00:02\n10.0.2.77/24\npong\n",
    );
}

/// The other end of the wire: every echo request that comes is answered, by whoever it was sent to. Gives back how many.
fn answer_pings(listener: UnixListener) -> std::io::Result<usize> {
    let (mut wire, _) = listener.accept()?;
    let mut answered = 0;
    let mut length = [0; 4];
    while wire.read_exact(&mut length).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        wire.read_exact(&mut frame)?;
        // Ethernet, IPv4 without options, ICMP echo request.
        if frame.len() < 42 || frame[12..15] != [8, 0, 0x45] || frame[23] != 1 || frame[34] != 8 {
            continue;
        }
        let mut answer =
            [&frame[6..12], &frame[..6], &frame[12..26], &frame[30..34], &frame[26..30]].concat();
        answer.extend(&frame[34..]);
        answer[34] = 0;
        // The sum of the message grows by what its type lost.
        let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
        let sum = (sum & 0xffff) + (sum >> 16);
        answer[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
        wire.write_all(&length)?;
        wire.write_all(&answer)?;
        answered += 1;
    }
    Ok(answered)
}

#[test]
fn somebody_elses_network_is_reached_by_its_socket() {
    let Some(servin) = Servin::new() else { return };
    let socket = servin.folder().join("wire");
    let network = format!("socket:{}", socket.display());
    let ping = ["run", "--rm", "--network", &network, BASE, "ping", "-c", "2", "-W", "20", "10.0.2.2"];
    let outcome = servin.go(&ping);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("connect to the network's socket"), "{}", outcome.stderr);

    let listener = UnixListener::bind(&socket).unwrap();
    let peer = std::thread::spawn(move || answer_pings(listener));
    let outcome = servin.go(&ping);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.text().contains("2 packets received"), "{}", outcome.text());
    assert_eq!(peer.join().unwrap().unwrap(), 2, "the wire ends with the machine");
    assert_eq!(servin.go(&["ps", "-aq"]).text(), "");
}
