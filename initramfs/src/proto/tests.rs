extern crate std;

use alloc::{
    format,
    string::{String, ToString as _},
    vec,
    vec::Vec,
};

use super::*;

fn networks() -> Networks {
    let other = Network { mac: Some([2, 0, 0, 0, 0, 9]), v6: None, ..Network::OWN };
    Networks {
        cards: vec![
            Card { number: 0, network: Network::OWN, leads_out: true },
            Card { number: 15, network: other, leads_out: false },
        ],
        resolv_conf: Some(b"nameserver 10.0.2.2\n".to_vec()),
        hosts: None,
    }
}

fn host_messages() -> Vec<HostMessage> {
    let mount = |source| Mount {
        source,
        target: b"/mnt/x y".to_vec(),
        read_only: true,
        no_exec: false,
        no_suid: true,
        no_dev: true,
    };
    let full = Configure {
        hostname: "box".into(),
        domainname: "example".into(),
        hosts: Some(b"127.0.0.1 localhost\n".to_vec()),
        resolv_conf: Some(Vec::new()),
        realtime_ns: Some(u64::MAX),
        entropy: vec![7; 512],
        root: Some(Root { lower: Lower::Virtiofs("root".into()), upper: Upper::Ext4("/dev/vdb".into()) }),
        read_only: true,
        forget_changes: true,
        mounts: vec![
            mount(MountSource::Virtiofs { tag: "v0".into(), path: b"dir/file".to_vec() }),
            mount(MountSource::Tmpfs { size: None, mode: 0o1777 }),
            mount(MountSource::Tmpfs { size: Some(1 << 40), mode: 0o755 }),
        ],
        limits: Limits {
            memory_max: Some(64 << 20),
            pids_max: Some(100),
            cpu: Some(CpuLimit { quota_us: 50_000, period_us: 100_000 }),
            files: vec![("memory.low".into(), "4096".into())],
        },
        shm_size: Some(1),
        sysctls: vec![("net/core/somaxconn".into(), "1024".into())],
        network: Some(Network { mac: Some([2, 0, 0, 0, 0, 9]), ..Network::OWN }),
        networks: Some(networks()),
        machine_id: Some(b"0123456789abcdef0123456789abcdef\n".to_vec()),
    };
    let roots = [
        Root { lower: Lower::Erofs("/dev/vda".into()), upper: Upper::None },
        Root { lower: Lower::Directory("/image".into()), upper: Upper::Tmpfs },
    ];
    let exec = Exec {
        id: u32::MAX,
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), vec![0xff, 0xfe], Vec::new()],
        env: vec![b"A=b".to_vec()],
        cwd: b"/tmp".to_vec(),
        create_cwd: true,
        user: "nobody:1000".into(),
        groups: vec!["audio".into(), "44".into()],
        terminal: Some(WindowSize { rows: 24, cols: 80 }),
        stdin: true,
        capabilities: Capabilities(u64::MAX),
        rlimits: vec![Rlimit { resource: 7, soft: 1024, hard: u64::MAX }],
        no_new_privileges: true,
        oom_score_adj: Some(-1000),
        init: true,
        main: false,
    };
    let mut messages = vec![
        HostMessage::Configure(Configure::default()),
        HostMessage::Configure(full),
        HostMessage::Configure(Configure {
            network: Some(Network { v6: None, gateway_mac: None, ..Network::OWN }),
            ..Configure::default()
        }),
        HostMessage::Exec(Exec::default()),
        HostMessage::Exec(exec),
        HostMessage::Signal { id: 3, signal: 64 },
        HostMessage::Resize { id: 3, size: WindowSize { rows: 1, cols: u16::MAX } },
        HostMessage::Files { id: 4 },
        HostMessage::Sync { token: 1 << 63 },
        HostMessage::Shutdown,
        HostMessage::Prepare(Prepare::default()),
        HostMessage::Prepare(Prepare {
            program: b"sh".to_vec(),
            path: b"/bin:/usr/bin".to_vec(),
            hosts: true,
            resolv_conf: false,
        }),
        HostMessage::Update(Limits { memory_max: Some(1), ..Limits::default() }),
        HostMessage::Observe { token: 9, subject: Subject::Usage },
        HostMessage::Observe { token: 9, subject: Subject::Processes },
        HostMessage::Freeze { frozen: true },
        HostMessage::Freeze { frozen: false },
        HostMessage::Networks(Networks::default()),
        HostMessage::Networks(networks()),
    ];
    messages.extend(
        roots.map(|root| HostMessage::Configure(Configure { root: Some(root), ..Configure::default() })),
    );
    messages
}

fn guest_messages() -> Vec<GuestMessage> {
    let mut messages = vec![
        GuestMessage::Hello(Hello { version: VERSION, generation: 2, entry_cycles: 3, hello_cycles: 4 }),
        GuestMessage::Ready,
        GuestMessage::Started { id: 1, pid: 1 },
        GuestMessage::Exited { id: 1, status: ExitStatus::Code(255), oom: false },
        GuestMessage::Exited { id: 1, status: ExitStatus::Signal(9), oom: true },
        GuestMessage::Synced { token: 5 },
        GuestMessage::Updated { errno: 0, message: String::new() },
        GuestMessage::Frozen { errno: 110, message: "wait".into() },
        GuestMessage::Networked { errno: 19, message: "find the network card".into() },
        GuestMessage::Observed { token: 9, cut: true, text: vec![b'x'; 70_000] },
        GuestMessage::Error { errno: 5, message: "mount the root".into() },
    ];
    for stage in [Stage::Request, Stage::User, Stage::Stdio, Stage::Namespace, Stage::Program] {
        messages.push(GuestMessage::ExecFailed { id: 9, stage, errno: -2, message: "exec /nope".into() });
    }
    messages
}

fn node(kind: NodeKind) -> Node {
    Node {
        path: vec![b'a', b'/', 0xff],
        kind,
        mode: 0o4755,
        uid: u32::MAX,
        gid: 7,
        mtime: (-1, 999_999_999),
        size: 1 << 40,
        device: (8, 1),
        link: b"../x".to_vec(),
        xattrs: vec![(b"user.a".to_vec(), vec![0, 1]), (b"user.b".to_vec(), Vec::new())],
    }
}

fn files_asks() -> Vec<FilesAsk<'static>> {
    vec![
        FilesAsk::Stat { path: b"/a b".to_vec(), follow: true },
        FilesAsk::Read { path: b"/".to_vec(), follow: false },
        FilesAsk::Write { path: b"/tmp".to_vec() },
        FilesAsk::Node(node(NodeKind::File)),
        FilesAsk::Node(node(NodeKind::HardLink)),
        FilesAsk::Data(&[7; MAX_DATA]),
        FilesAsk::End,
        FilesAsk::Changes,
        FilesAsk::Layer { pause: true },
        FilesAsk::Export,
    ]
}

fn files_tells() -> Vec<FilesTell<'static>> {
    vec![
        FilesTell::Node(node(NodeKind::Fifo)),
        FilesTell::Data(b"data"),
        FilesTell::Change { kind: ChangeKind::Deleted, path: b"/gone".to_vec() },
        FilesTell::Done,
        FilesTell::Failed { errno: 2, message: "open /x".into() },
    ]
}

const STREAM: [StreamMessage<'_>; 5] = [
    StreamMessage::Hello { id: 7 },
    StreamMessage::Stdout(b"out"),
    StreamMessage::Stderr(&[0; MAX_DATA]),
    StreamMessage::StdoutEof,
    StreamMessage::StderrEof,
];

/// Everything that one side sends, as one stream.
fn wire(messages: &[impl Encode]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        message.encode(&mut out).unwrap();
    }
    out
}

/// Decodes a whole stream given in pieces of `step` bytes, as `Debug` text.
fn decode(channel: Channel, bytes: &[u8], step: usize) -> Result<Vec<std::string::String>, Error> {
    let (mut frames, mut seen) = (Frames::new(channel), Vec::new());
    for piece in bytes.chunks(step) {
        frames.push(piece);
        while let Some(frame) = frames.next_frame()? {
            seen.push(match channel {
                Channel::HostControl => format!("{:?}", HostMessage::decode(frame)?),
                Channel::GuestControl => format!("{:?}", GuestMessage::decode(frame)?),
                Channel::HostFiles => format!("{:?}", FilesAsk::decode(frame)?),
                Channel::GuestFiles => format!("{:?}", FilesTell::decode(frame)?),
                _ => format!("{:?}", StreamMessage::decode(frame)?),
            });
        }
    }
    assert!(frames.next_frame()?.is_none());
    Ok(seen)
}

fn texts(messages: &[impl core::fmt::Debug]) -> Vec<std::string::String> {
    messages.iter().map(|m| format!("{m:?}")).collect()
}

#[test]
fn every_message_survives_the_wire_in_pieces_of_any_size() {
    for step in [1, 7, 8, 4096, usize::MAX] {
        let (host, guest) = (host_messages(), guest_messages());
        assert_eq!(decode(Channel::HostControl, &wire(&host), step).unwrap(), texts(&host));
        assert_eq!(decode(Channel::GuestControl, &wire(&guest), step).unwrap(), texts(&guest));
        assert_eq!(decode(Channel::GuestStream, &wire(&STREAM), step).unwrap(), texts(&STREAM));
        assert_eq!(decode(Channel::HostFiles, &wire(&files_asks()), step).unwrap(), texts(&files_asks()));
        assert_eq!(decode(Channel::GuestFiles, &wire(&files_tells()), step).unwrap(), texts(&files_tells()));
        let input = [
            StreamMessage::Stdin(b"in"),
            StreamMessage::StdinEof,
            StreamMessage::CloseStdout,
            StreamMessage::CloseStderr,
        ];
        assert_eq!(decode(Channel::HostStream, &wire(&input), step).unwrap(), texts(&input));
    }
}

#[test]
fn a_message_cut_or_lengthened_at_any_byte_is_refused() {
    for message in host_messages() {
        let frame = message.to_frame().unwrap();
        let kind = u16::from_le_bytes([frame[4], frame[5]]);
        let body = &frame[HEADER_LEN..];
        for end in 0..body.len() {
            let cut = HostMessage::decode(Frame { kind, body: &body[..end] });
            assert!(cut.is_err(), "{message:?} cut at {end} became {cut:?}");
        }
        let longer = [body, &[0]].concat();
        assert_eq!(HostMessage::decode(Frame { kind, body: &longer }), Err(Error::Trailing));
    }
}

#[test]
fn a_list_count_alone_costs_no_memory() {
    let mut body = vec![1, 0, 0, 0];
    body.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(HostMessage::decode(Frame { kind: kind::EXEC, body: &body }), Err(Error::Truncated));
}

#[test]
fn an_argument_of_100_kb_fits_and_one_of_5_mib_is_refused_whole() {
    let exec = |length| HostMessage::Exec(Exec { argv: vec![vec![b'a'; length]], ..Exec::default() });
    let frame = exec(100_000).to_frame().unwrap();
    assert_eq!(decode(Channel::HostControl, &frame, 4096).unwrap(), texts(&[exec(100_000)]));
    let mut out = vec![1, 2, 3];
    assert!(matches!(exec(5 << 20).encode(&mut out), Err(Error::TooLong { kind: kind::EXEC, .. })));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_header_is_refused_before_its_body_arrives() {
    let header = |kind: u16, length: u32, zero: u8| {
        let mut frames = Frames::new(Channel::GuestStream);
        frames.push(&[&length.to_le_bytes()[..], &kind.to_le_bytes(), &[zero, 0]].concat());
        frames.next_frame().map(|frame| frame.is_some())
    };
    assert_eq!(header(kind::STDOUT, 65_536, 0), Ok(false));
    assert_eq!(header(kind::STDOUT, 65_537, 0), Err(Error::TooLong { kind: kind::STDOUT, length: 65_537 }));
    assert_eq!(header(kind::STDOUT, 1, 1), Err(Error::Reserved));
    assert_eq!(header(kind::STDIN, 1, 0), Err(Error::UnknownKind(kind::STDIN)));
    assert_eq!(header(0x0499, 0, 0), Err(Error::UnknownKind(0x0499)));
}

#[test]
fn an_announced_length_is_not_allocated_before_the_bytes_come() {
    let mut frames = Frames::new(Channel::HostControl);
    frames.push(&[&(4u32 << 20).to_le_bytes()[..], &kind::EXEC.to_le_bytes(), &[0, 0]].concat());
    assert_eq!(frames.next_frame(), Ok(None));
    assert!(frames.space().len() <= 8192);
    assert!(frames.is_partial());
}

#[test]
fn bad_values_name_their_field() {
    let field = |message: HostMessage| {
        let frame = message.to_frame().unwrap();
        let kind = u16::from_le_bytes([frame[4], frame[5]]);
        HostMessage::decode(Frame { kind, body: &frame[HEADER_LEN..] }).unwrap_err()
    };
    let mount = |path: &[u8], target: &[u8]| {
        HostMessage::Configure(Configure {
            mounts: vec![Mount {
                source: MountSource::Virtiofs { tag: "t".into(), path: path.to_vec() },
                target: target.to_vec(),
                read_only: false,
                no_exec: false,
                no_suid: false,
                no_dev: false,
            }],
            ..Configure::default()
        })
    };
    assert_eq!(field(mount(b"a/../../b", b"/x")), Error::Invalid("mount.path"));
    assert_eq!(field(mount(b"/a", b"/x")), Error::Invalid("mount.path"));
    assert_eq!(field(mount(b"a", b"x")), Error::Invalid("mount.target"));
    assert_eq!(field(HostMessage::Signal { id: 0, signal: 65 }), Error::Invalid("signal"));
    let argv = vec![b"a\0b".to_vec()];
    assert_eq!(field(HostMessage::Exec(Exec { argv, ..Exec::default() })), Error::Invalid("argv"));
    let files = |name: &str| Limits { files: vec![(name.into(), "1".into())], ..Limits::default() };
    for name in ["../x", "", ".x", "a/b", "A"] {
        assert_eq!(field(HostMessage::Update(files(name))), Error::Invalid("limits.file"), "{name}");
    }
    for path in ["/kernel/x", "net/../x", "", "a//b"] {
        let sysctls = vec![(path.into(), "1".into())];
        let configure = Configure { sysctls, ..Configure::default() };
        assert_eq!(field(HostMessage::Configure(configure)), Error::Invalid("sysctl"), "{path}");
    }
    let exec = Exec { oom_score_adj: Some(1001), ..Exec::default() };
    assert_eq!(field(HostMessage::Exec(exec)), Error::Invalid("oom_score_adj"));
    let hostname = "h".repeat(65);
    assert_eq!(
        field(HostMessage::Configure(Configure { hostname, ..Configure::default() })),
        Error::Invalid("hostname")
    );
}

#[test]
fn a_long_error_text_is_cut_at_a_character() {
    let message = "ä".repeat(10_000);
    let frame = GuestMessage::Error { errno: 0, message }.to_frame().unwrap();
    let seen = GuestMessage::decode(Frame { kind: kind::ERROR, body: &frame[HEADER_LEN..] }).unwrap();
    assert_eq!(seen, GuestMessage::Error { errno: 0, message: "ä".repeat(2048) });
}

#[test]
fn data_headers_are_those_of_whole_frames() {
    let whole = StreamMessage::Stdout(b"abc").to_frame().unwrap();
    assert_eq!(data_header(kind::STDOUT, 3).unwrap(), whole[..HEADER_LEN]);
    assert!(data_header(kind::STDERR, MAX_DATA + 1).is_err());
    assert!(data_header(kind::STDOUT_EOF, 0).is_err());
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    assert_eq!(ExitStatus::Code(7).code(), 7);
    assert_eq!(ExitStatus::Signal(9).code(), 137);
}

#[test]
fn boot_options_are_read_back_as_written() {
    let lowers =
        [Lower::Virtiofs("root".into()), Lower::Erofs("/dev/vda".into()), Lower::Directory("/i".into())];
    for lower in lowers {
        for upper in [Upper::None, Upper::Tmpfs, Upper::Ext4("/dev/vdb".into())] {
            let root = Some(Root { lower: lower.clone(), upper });
            let options = BootOptions { root, network: true, sockets: Some("/run/s".into()) };
            let text = options.to_string();
            assert_eq!(BootOptions::parse(text.split(' ')), Ok(options), "{text}");
        }
    }
    assert_eq!(BootOptions::parse(["HOME=/", "quiet", "TERM=linux"]), Ok(BootOptions::default()));
    assert!(BootOptions::parse(["servin_root=nfs:x"]).unwrap_err().contains("servin_root=nfs:x"));
    assert!(BootOptions::parse(["servin_upper=ext4"]).is_err());
}

/// Not a replacement for the fuzz target, but it runs with every `cargo test`.
#[test]
fn random_changes_never_panic_the_decoders() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let streams = [
        (Channel::HostControl, wire(&host_messages())),
        (Channel::GuestControl, wire(&guest_messages())),
        (Channel::GuestStream, wire(&STREAM[..2])),
    ];
    let mut refused = 0;
    for round in 0..20_000 {
        let (channel, original) = &streams[round % streams.len()];
        let mut bytes = original.clone();
        for _ in 0..=random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(random() as usize % (bytes.len() + 1));
        refused += usize::from(decode(*channel, &bytes, 1 + random() as usize % 64).is_err());
    }
    assert!(refused > 1000, "only {refused} of the changes were noticed");
}
