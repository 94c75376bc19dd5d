//! A container that moves between networks, on a card of the host's kernel: one end of a pair, in a network namespace that is
//! nobody else's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use servin_init::proto::*;

use super::harness::{Guest, Running, sh};
use super::root_tests;

/// Set in the process that has a network namespace of its own.
const APART: &str = "SERVIN_TEST_NETWORK";

/// Whether this process can go on: it has a network of its own with a card in it. Otherwise the test runs in another process
/// that has one.
fn is_apart(test: &str) -> bool {
    let has_way = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
    if !has_way {
        eprintln!("skipped: ip, of iproute2, is not installed");
        return false;
    }
    if std::env::var_os(APART).is_some() {
        return true;
    }
    let card = "ip link add eth0 type veth peer name wire && ip link set wire up && \
                ip link add link eth0 name try type macvlan mode private && ip link delete try";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", card]).output().unwrap();
    if !tried.status.success() {
        eprintln!("skipped: this machine's kernel lacks veth or macvlan");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let script = format!("{card} && exec \"$0\" --exact --nocapture {test}");
    let mut other = Command::new("unshare");
    let status = other.args(["--net", "sh", "-c", &script]).arg(this).env(APART, "1").status().unwrap();
    assert!(status.success(), "{test} in a network of its own: {status}");
    false
}

/// A network of this container: the interface's number is in its addresses.
fn card(number: u8, leads_out: bool) -> Card {
    let six = |last| [0xfd, 0, 0, 0, 0, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, last];
    let network = Network {
        mac: Some([2, 0x42, 10, 1, number, 5]),
        address: [10, 1, number, 5],
        prefix: 24,
        gateway: [10, 1, number, 1],
        v6: Some(NetworkV6 { address: six(5), gateway: six(1) }),
        gateway_mac: Some([2, 0x53, 0x56, 0, 0, 1]),
    };
    Card { number, network, leads_out }
}

fn networks(cards: &[Card]) -> Networks {
    Networks { cards: cards.to_vec(), ..Networks::default() }
}

/// A container that waits for its input to end, and its main program.
fn guest(cards: &[Card]) -> (Guest, Running) {
    let mut guest = Guest::configured(Configure { networks: Some(networks(cards)), ..Configure::default() });
    let main = guest.start(Exec { stdin: true, ..sh("cat; exit 0") });
    (guest, main)
}

fn ask(guest: &mut Guest, networks: Networks) -> (i32, String) {
    guest.control.send(&HostMessage::Networks(networks));
    match guest.control.message() {
        Some(GuestMessage::Networked { errno, message }) => (errno, message),
        other => panic!("{other:?}"),
    }
}

fn move_to(guest: &mut Guest, networks: Networks) {
    assert_eq!(ask(guest, networks), (0, String::new()));
}

fn run(guest: &mut Guest, script: &str) -> String {
    let exec = Exec { main: false, capabilities: Capabilities(u64::MAX), ..sh(script) };
    let outcome = guest.run(exec);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.text().into()
}

/// What the container's programs see: addresses by their interfaces, then the ways to everywhere.
fn seen(guest: &mut Guest) -> Vec<String> {
    let script = "busybox ip -o addr | busybox awk '/inet/ && !/ (lo|wire) / {print $2, $4}'; \
                  busybox ip route | busybox awk '/^default/ {print $1, $3, $5}'; \
                  busybox ip -6 route | busybox awk '/^default/ {print $1, $3, $5}'";
    let mut lines: Vec<String> = run(guest, script).lines().map(Into::into).collect();
    lines.sort();
    lines
}

/// What is to be seen of these.
fn sight(cards: &[Card]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for Card { number, network, leads_out } in cards {
        let v6 = network.v6.unwrap();
        let [address, gateway] = [network.address, network.gateway].map(Ipv4Addr::from);
        let [address6, gateway6] = [v6.address, v6.gateway].map(Ipv6Addr::from);
        lines.extend([format!("eth{number} {address}/24"), format!("eth{number} {address6}/64")]);
        if *leads_out {
            lines.push(format!("default {gateway} eth{number}"));
            lines.push(format!("default {gateway6} eth{number}"));
        }
    }
    lines.sort();
    lines
}

root_tests! {
    fn a_container_has_several_networks_from_its_start() {
        if !is_apart("networks::a_container_has_several_networks_from_its_start") {
            return;
        }
        let cards = [card(0, false), card(1, true), card(15, false)];
        let (mut guest, _main) = guest(&cards);
        assert_eq!(seen(&mut guest), sight(&cards));
        let links = run(&mut guest, "cat /sys/class/net/eth0/address /sys/class/net/eth15/address; busybox ip neigh");
        let (macs, neighbours) = links.split_at(36);
        assert_eq!(macs, "02:42:0a:01:00:05\n02:42:0a:01:0f:05\n");
        for Card { number, .. } in cards {
            let known = format!("10.1.{number}.1 dev eth{number} lladdr 02:53:56:00:00:01");
            assert!(neighbours.contains(&known), "{neighbours}");
        }
    }

    fn networks_come_and_go_while_it_runs() {
        if !is_apart("networks::networks_come_and_go_while_it_runs") {
            return;
        }
        let first = [card(0, true)];
        let (mut guest, _main) = guest(&first);
        let all: [&[Card]; 8] = [
            &[card(0, true), card(1, false)],
            // The other one leads out now.
            &[card(0, false), card(1, true)],
            &[card(1, true)],
            // Back, and one more, in another order.
            &[card(2, false), card(0, true), card(1, false)],
            // Another network at the same number.
            &[card(0, true), Card { number: 1, ..card(3, false) }],
            &[Card { number: 0, ..card(4, true) }],
            &[],
            &first,
        ];
        for cards in all {
            move_to(&mut guest, networks(cards));
            assert_eq!(seen(&mut guest), sight(cards), "{cards:?}");
        }
    }

    fn its_files_tell_of_the_networks_and_stay_where_nothing_is_said() {
        if !is_apart("networks::its_files_tell_of_the_networks_and_stay_where_nothing_is_said") {
            return;
        }
        let first = networks(&[card(0, true)]);
        let hosts = Some(b"10.1.0.5 box\n".to_vec());
        let mut guest = Guest::configured(Configure { networks: Some(first), hosts, ..Configure::default() });
        let _main = guest.start(Exec { stdin: true, ..sh("cat") });
        let both = [card(0, true), card(1, false)];
        // The image has no such file.
        let resolv_conf = Some(b"nameserver 10.1.1.1\n".to_vec());
        move_to(&mut guest, Networks { resolv_conf, ..networks(&both) });
        let files = "cat /etc/hosts /etc/resolv.conf";
        assert_eq!(run(&mut guest, files), "10.1.0.5 box\nnameserver 10.1.1.1\n");
        let hosts = Some(b"x\n".to_vec());
        move_to(&mut guest, Networks { hosts, ..networks(&both) });
        assert_eq!(run(&mut guest, files), "x\nnameserver 10.1.1.1\n");
    }

    fn lines_that_its_programs_wrote_into_its_hosts_file_stay() {
        if !is_apart("networks::lines_that_its_programs_wrote_into_its_hosts_file_stay") {
            return;
        }
        let told = |cards: &[Card], text: &str| Networks { hosts: Some(text.into()), ..networks(cards) };
        let first = [card(0, true)];
        let (one, two) = ("127.0.0.1 localhost\n10.1.0.5 box\n", "127.0.0.1 localhost\n10.1.0.5 box\n10.1.1.5 box\n");
        let mut guest = Guest::boot(Upper::Tmpfs);
        guest.prepare(Prepare { hosts: true, ..Prepare::default() });
        let named = |text: &str| Configure {
            networks: Some(networks(&first)),
            hosts: Some(text.into()),
            ..Configure::default()
        };
        guest.configure(named(one));
        let _main = guest.start(Exec { stdin: true, ..sh("cat") });
        run(&mut guest, "echo 10.8.0.1 mine >> /etc/hosts");
        let both = [card(0, true), card(1, false)];
        move_to(&mut guest, told(&both, two));
        assert_eq!(run(&mut guest, "cat /etc/hosts"), format!("{two}10.8.0.1 mine\n"));
        move_to(&mut guest, told(&first, one));
        assert_eq!(run(&mut guest, "cat /etc/hosts"), format!("{one}10.8.0.1 mine\n"));
        // Not more than can be kept whole; the container goes on as it was.
        run(&mut guest, "busybox head -c 4194304 /dev/zero >> /etc/hosts");
        let (errno, message) = ask(&mut guest, told(&both, two));
        assert_eq!(message, "cannot change /etc/hosts: it cannot be read, or has 4 MiB or more", "{errno}");
        run(&mut guest, "echo 10.8.0.1 mine > /etc/hosts");
        move_to(&mut guest, told(&both, two));
        assert_eq!(run(&mut guest, "cat /etc/hosts"), "10.8.0.1 mine\n10.1.1.5 box\n");
    }

    fn a_network_that_cannot_be_is_said_so_and_leaves_nothing() {
        if !is_apart("networks::a_network_that_cannot_be_is_said_so_and_leaves_nothing") {
            return;
        }
        let (mut guest, _main) = guest(&[card(0, true)]);
        let mut group = card(1, false);
        group.network.mac = Some([3, 0, 0, 0, 0, 1]);
        let (errno, message) = ask(&mut guest, networks(&[card(0, true), group]));
        assert_eq!((errno, message.as_str()), (99, "set up the network card eth1"));
        assert_eq!(run(&mut guest, "ls /sys/class/net"), "eth0\nlo\nwire\n");
        // What was, and then what was meant.
        move_to(&mut guest, networks(&[card(0, true)]));
        let cards = [card(0, true), card(1, false)];
        move_to(&mut guest, networks(&cards));
        assert_eq!(seen(&mut guest), sight(&cards));
    }

    fn what_its_programs_took_away_is_not_missed() {
        if !is_apart("networks::what_its_programs_took_away_is_not_missed") {
            return;
        }
        let (mut guest, _main) = guest(&[card(0, true), card(1, false), card(2, false)]);
        run(&mut guest, "busybox ip link delete eth1; busybox ip route del default; busybox ip addr flush dev eth0");
        let cards = [card(2, true)];
        move_to(&mut guest, networks(&cards));
        assert_eq!(seen(&mut guest), sight(&cards));
    }

    fn a_restored_container_moves_to_other_networks() {
        if !is_apart("networks::a_restored_container_moves_to_other_networks") {
            return;
        }
        let mut guest = Guest::boot(Upper::Tmpfs);
        guest.configure(Configure { networks: Some(networks(&[card(0, true), card(1, false)])), ..Configure::default() });
        guest.reconnect();
        guest.hello(1);
        // As from a host that knows of one network alone.
        guest.configure(Configure { network: Some(card(0, true).network), ..Configure::default() });
        let _main = guest.start(Exec { stdin: true, ..sh("cat") });
        assert_eq!(seen(&mut guest), sight(&[card(0, true)]));
    }
}
