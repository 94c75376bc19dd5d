//! A guest with several networks on its card, and networks that come and go under it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::super::nat::{self, Addresses, Forward, GATEWAY_MAC, Listener, Nat};
use super::super::testing::{self, Guest, MAC, OUTSIDE, Received, Socket};
use super::super::wire::{self, ACK, Link};
use super::super::{Delivery, Net, Outgoing};
use super::*;
use crate::testing::Rig;

const SECOND: Mac = Mac([2, 0x42, 10, 9, 0, 3]);
const STRANGER: Mac = Mac([2, 0x42, 1, 2, 3, 4]);

/// The guest's network number 1.
fn second() -> Addresses {
    let (guest, gateway) = ([10, 9, 0, 3].into(), [10, 9, 0, 1].into());
    Addresses { guest, gateway, ..testing::addresses() }
}

fn config_of_second(forwards: Vec<Forward>) -> nat::Config {
    nat::Config { addresses: second(), mac: SECOND, ..testing::config(forwards) }
}

fn wire(config: nat::Config) -> Wire {
    Wire { mac: config.mac, backend: Box::new(Nat::new(config)) }
}

fn first_wire() -> Wire {
    wire(testing::config(Vec::new()))
}

fn second_wire() -> Wire {
    wire(config_of_second(Vec::new()))
}

/// A guest whose card has a thread of its own, as in a machine.
fn guest(first: Option<Wire>) -> (Guest, Plug) {
    let (trunk, plug) = Trunk::new(first).unwrap();
    let rig = Rig::threaded(Box::new(Net::new(MAC, Box::new(trunk))));
    (Guest::in_rig(rig, u64::MAX), plug)
}

/// A guest whose card is turned by the test.
fn inline_guest(first: Option<Wire>) -> (Guest, Plug) {
    let (trunk, plug) = Trunk::new(first).unwrap();
    (Guest::on(Net::new(MAC, Box::new(trunk)), u64::MAX), plug)
}

/// A question for who has an address.
fn asks(mac: Mac, from: Ipv4Addr, for_: Ipv4Addr) -> Vec<u8> {
    let mut frame = [Mac::BROADCAST.0, mac.0].concat();
    frame.extend(wire::ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(for_.octets());
    frame
}

fn asks_first() -> Vec<u8> {
    asks(MAC, testing::addresses().guest, testing::addresses().gateway)
}

fn asks_second() -> Vec<u8> {
    asks(SECOND, second().guest, second().gateway)
}

fn answer(mac: Mac, addresses: &Addresses) -> Vec<u8> {
    Link { dst: mac, src: GATEWAY_MAC }.arp_reply(addresses.gateway, addresses.guest)
}

/// What the guest is told, and nothing before it.
#[track_caller]
fn hears(guest: &mut Guest, frame: &[u8]) {
    let Received { bytes, .. } = guest.receive();
    assert_eq!(bytes, frame);
}

fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A socket of the guest on its second network.
fn second_socket(port: u16, peer: &str) -> Socket {
    let link = Link { dst: GATEWAY_MAC, src: SECOND };
    Socket { link, me: SocketAddr::new(second().guest.into(), port), ..Socket::new(port, peer) }
}

#[test]
fn each_network_hears_the_interface_that_is_its_own() {
    let (mut guest, plug) = guest(Some(first_wire()));
    guest.send(&asks_first());
    hears(&mut guest, &answer(MAC, &testing::addresses()));
    plug.connect(1, second_wire()).unwrap();
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
    // The other one's gateway is not on its wire.
    guest.send(&asks(MAC, testing::addresses().guest, second().gateway));
    guest.send(&asks(SECOND, second().guest, testing::addresses().gateway));
    guest.send(&asks_first());
    hears(&mut guest, &answer(MAC, &testing::addresses()));
}

#[test]
fn an_unknown_address_is_on_the_first_network_or_nowhere() {
    let (mut guest, plug) = guest(Some(first_wire()));
    plug.connect(3, second_wire()).unwrap();
    let question = asks(STRANGER, testing::addresses().guest, testing::addresses().gateway);
    guest.send(&question);
    hears(&mut guest, &answer(STRANGER, &testing::addresses()));
    plug.disconnect(0);
    guest.send(&question);
    guest.send(&asks_first());
    guest.send(&[0; 5]);
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
}

#[test]
fn connections_on_two_networks_do_not_meet() {
    const SIZE: usize = 1 << 20;
    let (mut guest, plug) = guest(Some(first_wire()));
    plug.connect(15, second_wire()).unwrap();
    let (listener, port) = server();
    let peer = format!("{OUTSIDE}:{port}");
    // The same port, for each is alone on its network.
    let mut streams = Vec::new();
    let mut sockets = [Socket::new(4000, &peer), second_socket(4000, &peer)];
    for (number, socket) in (0_u8..).zip(&mut sockets) {
        socket.connect(&mut guest);
        let (mut stream, _) = listener.accept().unwrap();
        socket.send(&mut guest, ACK, &[number; 9]);
        let mut got = [9; 9];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, [number; 9]);
        let sender = std::thread::spawn(move || stream.write_all(&vec![number; SIZE]).map(|()| stream));
        let (got, _) = socket.read(&mut guest, SIZE);
        assert!(got.iter().all(|byte| *byte == number), "nothing of another connection");
        // Open while the other one's turn comes.
        streams.push(sender.join().unwrap().unwrap());
    }
}

#[test]
fn a_port_is_published_on_the_second_network() {
    let (listener, _) = server();
    let published = listener.local_addr().unwrap();
    let again = listener.try_clone().unwrap();
    let (mut guest, plug) = guest(Some(first_wire()));
    let forward = |listener| vec![Forward { listener: Listener::Tcp(listener), port: 80 }];
    plug.connect(2, wire(config_of_second(forward(listener)))).unwrap();
    let _visitor = TcpStream::connect(published).unwrap();
    assert_eq!(guest.receive().ip().dst, second().guest);
    // It moves to the first with the same listener.
    plug.disconnect(2);
    plug.connect(0, wire(testing::config(forward(again)))).unwrap();
    let _visitor = TcpStream::connect(published).unwrap();
    assert_eq!(guest.receive().ip().dst, testing::addresses().guest);
}

#[test]
fn connections_are_gone_when_a_network_is() {
    let (mut guest, plug) = guest(Some(first_wire()));
    plug.connect(1, second_wire()).unwrap();
    let (listener, port) = server();
    let peer = format!("{OUTSIDE}:{port}");
    let mut stays = Socket::new(4000, &peer);
    stays.connect(&mut guest);
    let (mut staying, _) = listener.accept().unwrap();
    let mut goes = second_socket(4000, &peer);
    goes.connect(&mut guest);
    let (mut going, _) = listener.accept().unwrap();
    plug.disconnect(1);
    going.set_nonblocking(true).unwrap();
    let ended = going.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(ended, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{ended:?}");
    // Nobody answers there, and the first goes on.
    guest.send(&asks_second());
    staying.write_all(b"still").unwrap();
    assert_eq!(stays.read(&mut guest, 5).0, b"still");
    plug.disconnect(1);
    plug.disconnect(MOST);
}

#[test]
fn another_network_takes_the_place_of_one() {
    let (mut guest, plug) = guest(Some(first_wire()));
    plug.connect(0, second_wire()).unwrap();
    guest.send(&asks_first());
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
    // Its address is free again.
    plug.connect(1, first_wire()).unwrap();
    guest.send(&asks_first());
    hears(&mut guest, &answer(MAC, &testing::addresses()));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (mut guest, plug) = guest(Some(first_wire()));
    assert!(matches!(plug.connect(MOST, second_wire()), Err(Refused::Number(MOST))));
    let same = Wire { mac: MAC, ..second_wire() };
    assert!(matches!(plug.connect(1, same), Err(Refused::Mac(MAC))));
    let other =
        Wire { mac: STRANGER, backend: Box::new(Caster { offloads: Offloads::default(), fails: false }) };
    assert!(matches!(plug.connect(1, other), Err(Refused::Offloads)));
    guest.send(&asks_second());
    guest.send(&asks_first());
    hears(&mut guest, &answer(MAC, &testing::addresses()));
}

#[test]
fn one_that_cannot_start_is_taken_off_and_the_card_goes_on() {
    let (mut guest, plug) = guest(Some(first_wire()));
    let broken = Wire { mac: SECOND, backend: Box::new(Caster { offloads: nat::OFFLOADS, fails: true }) };
    assert!(matches!(plug.connect(1, broken), Err(Refused::Start(_))));
    plug.connect(2, second_wire()).unwrap();
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
    assert!(guest.rig.faults.lock().unwrap().is_empty());
}

#[test]
fn networks_change_while_no_driver_runs_and_stay_over_a_reset() {
    let (trunk, plug) = Trunk::new(None).unwrap();
    plug.connect(0, first_wire()).unwrap();
    plug.connect(1, second_wire()).unwrap();
    assert!(matches!(plug.connect(2, second_wire()), Err(Refused::Mac(SECOND))));
    let rig = Rig::threaded(Box::new(Net::new(MAC, Box::new(trunk))));
    let mut guest = Guest::in_rig(rig, u64::MAX);
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
    guest.rig.write32(virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    plug.disconnect(0);
    let mut guest = Guest::in_rig(guest.rig, u64::MAX);
    guest.send(&asks_first());
    guest.send(&asks_second());
    hears(&mut guest, &answer(SECOND, &second()));
    drop(guest);
    assert!(matches!(plug.connect(0, first_wire()), Err(Refused::Gone)));
    plug.disconnect(1);
}

#[test]
fn a_card_that_does_not_come_to_it_is_not_waited_for_and_does_not_do_it_later() {
    let (mut guest, plug) = inline_guest(Some(first_wire()));
    assert!(matches!(plug.connect_within(Duration::ZERO, 1, second_wire()), Err(Refused::Busy)));
    guest.rig.run();
    guest.send(&asks_second());
    assert!(guest.poll().is_none());
    // What is taken off waits for the card.
    let (_, done) = plug.order(0, None);
    guest.rig.run();
    assert!(matches!(done.try_recv(), Ok(Ok(()))));
    // So does what was asked for when the driver goes.
    let (_, done) = plug.order(1, Some(second_wire()));
    guest.rig.write32(virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert!(matches!(done.try_recv(), Ok(Ok(()))));
}

/// Says the same to all whenever the guest says something.
struct Caster {
    offloads: Offloads,
    fails: bool,
}

impl Backend for Caster {
    fn offloads(&self) -> Offloads {
        self.offloads
    }
    fn start(&mut self, _: &mut Port<'_>) -> Result<(), Error> {
        let fail = Error::Host { doing: "start a test", source: io::ErrorKind::Other.into() };
        if self.fails { Err(fail) } else { Ok(()) }
    }
    fn transmit(&mut self, _: Frame<'_>, port: &mut Port<'_>) -> Result<(), Error> {
        let frame =
            Outgoing { head: &cast(Mac::BROADCAST), payload: [b"to ", b"all"], ..Outgoing::default() };
        assert_eq!(port.deliver(&frame)?, Delivery::Done);
        // As short as none should be.
        port.deliver(&Outgoing { head: &[0xff; 3], ..Outgoing::default() }).map(drop)
    }
    fn settle(&mut self, _: &mut Port<'_>) -> Result<(), Error> {
        Ok(())
    }
    fn on_host(&mut self, _: Token, _: Ready, _: &mut Port<'_>) -> Result<(), Error> {
        Ok(())
    }
    fn stop(&mut self, _: &mut Port<'_>) {}
}

/// The head of what a [`Caster`] says, for this address.
fn cast(to: Mac) -> Vec<u8> {
    [to.0, GATEWAY_MAC.0].concat()
}

#[test]
fn what_is_for_all_goes_to_one_interface_where_there_are_several() {
    let caster = |mac| Wire { mac, backend: Box::new(Caster { offloads: nat::OFFLOADS, fails: false }) };
    let (mut guest, plug) = guest(Some(caster(MAC)));
    let all = |to| [cast(to), b"to all".to_vec()].concat();
    guest.send(&asks_first());
    hears(&mut guest, &all(Mac::BROADCAST));
    hears(&mut guest, &[0xff; 3]);
    plug.connect(1, caster(SECOND)).unwrap();
    for (question, mac) in [(asks_first(), MAC), (asks_second(), SECOND)] {
        guest.send(&question);
        hears(&mut guest, &all(mac));
        hears(&mut guest, &mac.0[..3]);
    }
    plug.disconnect(1);
    guest.send(&asks_first());
    hears(&mut guest, &all(Mac::BROADCAST));
}
