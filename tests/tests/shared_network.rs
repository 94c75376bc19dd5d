//! Networks that containers share: names, addresses, bytes both ways, and who is not there.

use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a script in a container until it succeeds: what it asks of another container is there a moment later.
#[track_caller]
fn until(servin: &Servin, container: &str, script: &str) -> String {
    let began = Instant::now();
    loop {
        let outcome = servin.go(&["exec", container, "sh", "-c", script]);
        if outcome.code == Some(0) {
            return outcome.text();
        }
        assert!(began.elapsed() < PATIENCE, "{script}: {outcome:?}");
    }
}

/// Starts a container of this name on a network, which sleeps.
#[track_caller]
fn start(servin: &Servin, name: &str, words: &[&str]) {
    let run = ["run", "-d", "--name", name];
    let outcome = servin.go(&[&run[..], words, &[BASE, "sleep", "1000"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[track_caller]
fn refused(servin: &Servin, words: &[&str], why: &str) {
    let outcome = servin.go(words);
    assert!(outcome.code.is_some_and(|code| code != 0) && outcome.stderr.contains(why), "{outcome:?}");
}

#[test]
fn two_containers_of_a_network_find_each_other_by_name_and_a_megabyte_arrives_intact() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "--subnet", "10.90.0.0/24", "back"]);
    start(&servin, "one", &["--network", "back"]);
    start(
        &servin,
        "two",
        &["--network", "back", "--network-alias", "db", "--ip", "10.90.0.77", "-p", "127.0.0.1::80"],
    );
    // Names, aliases and the short id, as the gateway resolves them.
    let id = servin.go(&["inspect", "--format", "{{.Id}}", "two"]).text();
    for name in ["two", "db", "DB", &id[..12]] {
        let answer = until(&servin, "one", &format!("ping -c 1 -W 5 {name}"));
        assert!(answer.contains("(10.90.0.77)"), "{answer}");
    }
    until(&servin, "two", "ping -c 1 -W 5 one");
    // A megabyte there and back, over one connection, while both ends check it.
    let make = "seq 200000 | head -c 1048576 > /tmp/x";
    until(&servin, "one", make);
    until(&servin, "two", make);
    let serve = "nc -l -p 7000 < /tmp/x > /tmp/got; cmp /tmp/x /tmp/got && echo same > /tmp/verdict";
    servin.go(&["exec", "-d", "two", "sh", "-c", serve]);
    until(&servin, "two", "netstat -ltn | grep -q :7000");
    let outcome = servin.go(&["exec", "one", "sh", "-c", "nc db 7000 < /tmp/x | cmp - /tmp/x && echo same"]);
    outcome.expect(0, "same\n");
    assert_eq!(until(&servin, "two", "cat /tmp/verdict"), "same\n");
    // Published ports and the world outside are there as without it.
    servin.go(&["exec", "-d", "two", "sh", "-c", "echo page | nc -l -p 80"]);
    until(&servin, "two", "netstat -ltn | grep -q :80");
    let at = servin.go(&["port", "two", "80"]).text();
    let mut page = String::new();
    let stream = std::net::TcpStream::connect(at.trim());
    stream.and_then(|mut stream| stream.read_to_string(&mut page)).expect("the page");
    assert_eq!(page, "page\n");
    // What is told of it.
    let format = "{{json .NetworkSettings.Networks}}";
    let about = servin.go(&["inspect", "--format", format, "two"]).text();
    for part in ["\"back\"", "\"IPAddress\":\"10.90.0.77\"", "\"Gateway\":\"10.90.0.1\"", "\"db\""] {
        assert!(about.contains(part), "{part} is not in {about}");
    }
    assert!(servin.go(&["network", "inspect", "back"]).text().contains("10.90.0.77/24"));
    servin.go(&["rm", "-f", "two"]).expect(0, "two\n");
    // Its name and its address are gone with it.
    let gone = servin.go(&[
        "exec",
        "one",
        "sh",
        "-c",
        "nslookup -type=a two; nc -w 5 10.90.0.77 80 < /dev/null || echo gone",
    ]);
    assert!(gone.text().ends_with("gone\n") && !gone.text().contains("10.90.0.77"), "{gone:?}");
    servin.go(&["rm", "-f", "one"]).expect(0, "one\n");
    servin.go(&["network", "rm", "back"]).expect(0, "back\n");
}

#[test]
fn containers_of_two_networks_do_not_reach_each_other_and_a_used_network_stays() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "--subnet", "10.90.0.0/24", "front"]);
    servin.go(&["network", "create", "--subnet", "10.91.0.0/24", "--internal", "back"]);
    start(&servin, "one", &["--network", "front"]);
    start(&servin, "two", &["--network", "back"]);
    start(&servin, "near", &["--network", "back"]);
    until(&servin, "two", "ping -c 1 -W 5 near");
    let script = "for name in two 10.91.0.2; do ping -c 1 -W 2 $name && echo reached; done; exit 3";
    let outcome = servin.go(&["exec", "one", "sh", "-c", script]);
    assert!(outcome.code == Some(3) && !outcome.text().contains("reached"), "{outcome:?}");
    // An internal network leads nowhere: it is said at once.
    let outcome = servin.go(&["exec", "two", "sh", "-c", "nc -w 60 198.51.100.9 9 < /dev/null"]);
    assert!(outcome.stderr.contains("unreachable"), "{outcome:?}");
    refused(&servin, &["run", "--rm", "--network", "back", "-p", "80", BASE, "true"], "internal");
    refused(&servin, &["run", "--rm", "--network", "other", BASE, "true"], "no such network: other");
    refused(&servin, &["network", "rm", "front"], "used by: one");
    servin.go(&["stop", "-t", "0", "one"]).expect(0, "one\n");
    // Moved while it does not run, it is the others' neighbour when it starts again.
    servin.go(&["network", "disconnect", "front", "one"]).expect(0, "");
    servin.go(&["network", "connect", "--alias", "moved", "back", "one"]).expect(0, "");
    servin.go(&["start", "one"]).expect(0, "one\n");
    until(&servin, "one", "ping -c 1 -W 5 two");
    until(&servin, "two", "ping -c 1 -W 5 moved");
    servin
        .go(&["ps", "--filter", "network=back", "--format", "{{.Names}} {{.Networks}}"])
        .expect(0, "near back\ntwo back\none back\n");
    servin.go(&["network", "prune", "-f"]).expect(0, "Deleted Networks:\nfront\n\n");
    servin.go(&["rm", "-f", "one", "two", "near"]).expect(0, "one\ntwo\nnear\n");
    servin.go(&["network", "rm", "back"]).expect(0, "back\n");
    servin.go(&["network", "ls", "--format", "{{.Name}}"]).expect(0, "bridge\nnone\n");
}

/// The page that a container serves at a published port.
#[track_caller]
fn page(servin: &Servin, container: &str) -> String {
    servin.go(&["exec", "-d", container, "sh", "-c", "echo page | nc -l -p 80"]);
    until(servin, container, "netstat -ltn | grep -q :80");
    let at = servin.go(&["port", container, "80"]).text();
    let mut page = String::new();
    let stream = std::net::TcpStream::connect(at.trim());
    stream.and_then(|mut stream| stream.read_to_string(&mut page)).expect("the page");
    page
}

#[test]
fn a_container_comes_to_a_network_and_leaves_another_while_it_runs() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "--subnet", "10.90.0.0/24", "front"]);
    servin.go(&["network", "create", "--subnet", "10.91.0.0/24", "back"]);
    start(&servin, "one", &["--network", "front", "-p", "127.0.0.1::80"]);
    start(&servin, "near", &["--network", "front"]);
    start(&servin, "two", &["--network", "back"]);
    until(&servin, "near", "ping -c 1 -W 5 one");
    servin.go(&["exec", "one", "sh", "-c", "echo 10.8.0.1 mine >> /etc/hosts"]).expect(0, "");
    let connect = ["network", "connect", "--ip", "10.91.0.50", "--alias", "web", "back", "one"];
    servin.go(&connect).expect(0, "");
    refused(&servin, &connect, "already connected to network back");
    // Both ways and by name on the new one, and on the first as before; out and in by the first.
    until(&servin, "one", "ping -c 1 -W 5 two");
    assert!(until(&servin, "two", "ping -c 1 -W 5 web").contains("(10.91.0.50)"));
    until(&servin, "one", "ping -c 1 -W 5 near");
    until(&servin, "near", "ping -c 1 -W 5 one");
    let route = ["exec", "one", "ip", "route", "show", "default"];
    assert!(servin.go(&route).text().starts_with("default via 10.90.0.1 dev eth0"));
    assert_eq!(page(&servin, "one"), "page\n");
    // A megabyte over one connection, in long segments.
    let make = "seq 200000 | head -c 1048576 > /tmp/x";
    until(&servin, "one", make);
    until(&servin, "two", make);
    servin.go(&["exec", "-d", "one", "sh", "-c", "nc -l -p 7000 -e cat"]);
    until(&servin, "one", "netstat -ltn | grep -q :7000");
    let script = "nc web 7000 < /tmp/x | cmp - /tmp/x && echo same";
    servin.go(&["exec", "two", "sh", "-c", script]).expect(0, "same\n");
    // What is told of it.
    let networks = ["inspect", "--format", "{{json .NetworkSettings.Networks}}", "one"];
    let about = servin.go(&networks).text();
    for part in ["\"front\":{", "\"10.90.0.2\"", "\"back\":{", "\"10.91.0.50\"", "\"web\""] {
        assert!(about.contains(part), "{part} is not in {about}");
    }
    servin.go(&["ps", "--filter", "name=one", "--format", "{{.Networks}}"]).expect(0, "front,back\n");
    assert!(servin.go(&["network", "inspect", "back"]).text().contains("10.91.0.50/24"));
    refused(&servin, &["network", "rm", "back"], "used by: two, one");
    // What led out goes, and the other one takes its place; a connection on that goes on.
    servin.go(&["exec", "-d", "one", "sh", "-c", "nc -l -p 7001 -e sh -c 'cat > /tmp/held'"]);
    until(&servin, "one", "netstat -ltn | grep -q :7001");
    let talk = "(echo before; while [ ! -e /tmp/go ]; do sleep 1; done; echo after) | nc web 7001";
    servin.go(&["exec", "-d", "two", "sh", "-c", talk]);
    until(&servin, "one", "grep before /tmp/held");
    servin.go(&["network", "disconnect", "front", "one"]).expect(0, "");
    refused(&servin, &["network", "disconnect", "front", "one"], "not on network front");
    let gone = servin.go(&["exec", "near", "sh", "-c", "nslookup -type=a one; ping -c 1 -W 2 10.90.0.2"]);
    assert!(gone.code != Some(0) && !gone.text().contains("Address: 10.90.0.2"), "{gone:?}");
    assert!(!servin.go(&["exec", "one", "ip", "address"]).text().contains("10.90.0."));
    assert!(servin.go(&route).text().starts_with("default via 10.91.0.1 dev eth1"));
    let resolvers = servin.go(&["exec", "one", "cat", "/etc/resolv.conf", "/etc/hosts"]).text();
    assert!(resolvers.contains("nameserver 10.91.0.1\n") && !resolvers.contains("10.90.0"), "{resolvers}");
    // What its programs wrote stays.
    assert!(resolvers.ends_with("10.8.0.1 mine\n"), "{resolvers}");
    until(&servin, "one", "ping -c 1 -W 5 two");
    until(&servin, "two", "ping -c 1 -W 5 one");
    servin.go(&["exec", "two", "touch", "/tmp/go"]);
    until(&servin, "one", "grep after /tmp/held");
    assert_eq!(page(&servin, "one"), "page\n");
    // From none it comes back, and is there when it starts again.
    servin.go(&["network", "disconnect", "back", "one"]).expect(0, "");
    assert_eq!(servin.go(&route).text(), "");
    servin.go(&["network", "connect", "front", "one"]).expect(0, "");
    until(&servin, "near", "ping -c 1 -W 5 one");
    servin.go(&["network", "connect", "back", "one"]).expect(0, "");
    servin.go(&["restart", "-t", "0", "one"]).expect(0, "one\n");
    until(&servin, "one", "ping -c 1 -W 5 near && ping -c 1 -W 5 two");
    until(&servin, "two", "ping -c 1 -W 5 one");
    assert_eq!(page(&servin, "one"), "page\n");
    servin.go(&["rm", "-f", "one", "near", "two"]).expect(0, "one\nnear\ntwo\n");
    servin.go(&["network", "rm", "front", "back"]).expect(0, "front\nback\n");
}

#[test]
fn a_container_that_starts_on_several_networks_is_on_all_of_them_again_when_it_is_restored() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "--subnet", "10.91.0.0/24", "--internal", "back"]);
    servin.go(&["network", "create", "--subnet", "10.92.0.0/24", "side"]);
    start(&servin, "deep", &["--network", "back"]);
    start(&servin, "beside", &["--network", "side"]);
    let several = [
        "--network",
        "back",
        "--network-alias",
        "hub",
        "--network",
        "bridge",
        "--network",
        "name=side,alias=mid",
    ];
    start(&servin, "one", &several);
    until(&servin, "one", "ping -c 1 -W 5 deep && ping -c 1 -W 5 beside");
    until(&servin, "deep", "ping -c 1 -W 5 hub");
    until(&servin, "beside", "ping -c 1 -W 5 mid");
    // The first leads nowhere, so that the second leads out.
    let route = servin.go(&["exec", "one", "ip", "route", "show", "default"]).text();
    assert!(route.starts_with("default via 10.0.2.2 dev eth1"), "{route}");
    refused(&servin, &["network", "connect", "none", "one"], "private (none) mode");
    servin.go(&["pause", "one"]).expect(0, "one\n");
    refused(&servin, &["network", "disconnect", "side", "one"], "paused");
    servin.go(&["unpause", "one"]).expect(0, "one\n");
    servin.go(&["snapshot", "one", "saved"]).expect(0, "saved\n");
    servin.go(&["restore", "-d", "--name", "other", "saved"]);
    // Both are there, each at its own addresses.
    for name in ["one", "other"] {
        until(&servin, name, "ping -c 1 -W 5 deep && ping -c 1 -W 5 beside");
        until(&servin, "beside", &format!("ping -c 1 -W 5 {name}"));
        until(&servin, "deep", &format!("ping -c 1 -W 5 {name}"));
    }
    // One that was started without a card gets none while it runs.
    start(&servin, "alone", &["--network", "none"]);
    refused(&servin, &["network", "connect", "side", "alone"], "gets no card while it runs");
    servin.go(&["ps", "--filter", "name=alone", "--format", "{{.Networks}}"]).expect(0, "none\n");
    let all = ["one", "other", "deep", "beside", "alone"];
    assert_eq!(servin.go(&[&["rm", "-f"][..], &all].concat()).code, Some(0));
    servin.go(&["network", "rm", "back", "side"]).expect(0, "back\nside\n");
}

#[test]
fn a_guest_cannot_speak_by_anothers_address() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "--subnet", "10.90.0.0/24", "net"]);
    for name in ["one", "two"] {
        start(&servin, name, &["--network", "net", "--privileged"]);
    }
    until(&servin, "one", "ping -c 1 -W 5 two");
    // Another address of its own making is heard by nobody.
    until(&servin, "one", "ip address add 10.90.0.9/24 dev eth0");
    let outcome = servin.go(&[
        "exec",
        "one",
        "sh",
        "-c",
        "ping -c 2 -W 2 -I 10.90.0.9 10.90.0.3; ping -c 1 -W 5 two > /dev/null && echo own",
    ]);
    assert!(outcome.text().contains("100% packet loss") && outcome.text().ends_with("own\n"), "{outcome:?}");
    servin.go(&["rm", "-f", "one", "two"]).expect(0, "one\ntwo\n");
}

#[test]
fn a_container_whose_monitor_was_killed_is_found_again_when_it_starts_again() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["network", "create", "net"]);
    for name in ["one", "two"] {
        start(&servin, name, &["--network", "net"]);
    }
    until(&servin, "one", "ping -c 1 -W 5 two");
    // What it came to while it ran, it is on when it starts again.
    servin.go(&["network", "create", "more"]);
    servin.go(&["network", "connect", "more", "two"]).expect(0, "");
    let pid = servin.go(&["inspect", "--format", "{{.State.Pid}}", "two"]).text();
    let killed = Command::new("kill").args(["-9", pid.trim()]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let began = Instant::now();
    while servin.go(&["ps", "-q", "--filter", "name=two"]).text() != "" {
        assert!(began.elapsed() < PATIENCE, "it still runs");
    }
    let gone = servin.go(&["exec", "one", "sh", "-c", "ping -c 1 -W 2 two"]);
    assert!(gone.code != Some(0), "{gone:?}");
    servin.go(&["ps", "-a", "--filter", "name=two", "--format", "{{.Networks}}"]).expect(0, "net,more\n");
    servin.go(&["start", "two"]).expect(0, "two\n");
    until(&servin, "one", "ping -c 1 -W 5 two");
    servin.go(&["network", "connect", "more", "one"]).expect(0, "");
    servin.go(&["network", "disconnect", "net", "one"]).expect(0, "");
    until(&servin, "two", "ping -c 1 -W 5 one");
    servin.go(&["rm", "-f", "one", "two"]).expect(0, "one\ntwo\n");
}

#[test]
fn containers_of_a_network_with_ipv6_reach_each_other_by_it() {
    let Some(servin) = Servin::new() else { return };
    let create =
        ["network", "create", "--ipv6", "--subnet", "10.90.6.0/24", "--subnet", "fd00:90:6:1::/64", "six"];
    assert_eq!(servin.go(&create).code, Some(0));
    refused(&servin, &["network", "create", "--subnet", "fd00:91::/64", "x"], "--ipv6");
    start(&servin, "one", &["--network", "six"]);
    start(&servin, "two", &["--network", "six", "--network-alias", "db"]);
    let found = until(&servin, "one", "ping -6 -c 1 -W 5 db");
    assert!(found.contains("(fd00:90:6:1::3)"), "{found}");
    // A megabyte there and back, in long segments.
    until(&servin, "one", "seq 200000 | head -c 1048576 > /tmp/x");
    servin.go(&["exec", "-d", "two", "sh", "-c", "nc -l -p 7000 -e cat"]);
    until(&servin, "two", "netstat -ltn | grep -q :7000");
    let script = "nc fd00:90:6:1::3 7000 < /tmp/x | cmp - /tmp/x && echo same";
    servin.go(&["exec", "one", "sh", "-c", script]).expect(0, "same\n");
    // Both addresses are told, and the way out is its own gateway's.
    let format =
        "{{.NetworkSettings.Networks.six.GlobalIPv6Address}} {{.NetworkSettings.Networks.six.IPv6Gateway}}";
    assert_eq!(
        servin.go(&["inspect", "--format", format, "two"]).text().trim(),
        "fd00:90:6:1::3 fd00:90:6:1::1"
    );
    let about = servin.go(&["network", "inspect", "six"]).text();
    for part in ["\"EnableIPv6\": true", "fd00:90:6:1::/64", "fd00:90:6:1::3/64"] {
        assert!(about.contains(part), "{part} is not in {about}");
    }
    let routes = servin.go(&["exec", "two", "ip", "-6", "route", "show", "default"]).text();
    assert!(routes.starts_with("default via fd00:90:6:1::1 ") && routes.lines().count() == 1, "{routes}");
    until(&servin, "two", "ping -6 -c 1 -W 5 fd00:90:6:1::1");
    // One that comes from a network of its own while it runs has IPv6 there, and leads out as before.
    start(&servin, "three", &[]);
    servin.go(&["network", "connect", "six", "three"]).expect(0, "");
    assert!(until(&servin, "three", "ping -6 -c 1 -W 5 db").contains("(fd00:90:6:1::3)"));
    until(&servin, "one", "ping -6 -c 1 -W 5 three");
    let routes = servin.go(&["exec", "three", "ip", "-6", "route", "show", "default"]).text();
    assert!(routes.starts_with("default via fd53:7276:696e::2 ") && routes.lines().count() == 1, "{routes}");
    servin.go(&["rm", "-f", "three"]).expect(0, "three\n");
    // Who is gone is not found.
    servin.go(&["rm", "-f", "two"]).expect(0, "two\n");
    let gone = servin.go(&["exec", "one", "sh", "-c", "ping -6 -c 1 -W 2 fd00:90:6:1::3 || echo gone"]);
    assert!(gone.text().ends_with("gone\n"), "{gone:?}");
    servin.go(&["rm", "-f", "one"]).expect(0, "one\n");
    servin.go(&["network", "rm", "six"]).expect(0, "six\n");
}
