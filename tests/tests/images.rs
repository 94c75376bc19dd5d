//! Images of Debian packages as people use them: a Debian, a server talked to by its real client, a Python program, and an
//! image of every kind of tar entry. The folder of them: `tests/images/build.sh`.
//!
//! Programs of this size take minutes where a hypervisor emulates guest kernels, for their libraries alone: there, one shell of
//! Debian stands for all. The nested host runs everything.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use servin_tests::machine::{Outcome, Servin};
use servin_tests::packages;
use servin_tests::registry::Registry;

const PATIENCE: Duration = Duration::from_secs(200);

#[track_caller]
fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    outcome
}

fn load(servin: &Servin, folder: &Path, name: &str) {
    let archive = folder.join(format!("{name}.tar"));
    servin
        .go(&["load", "-q", "-i", archive.to_str().unwrap()])
        .expect(0, &format!("Loaded image: test/{name}:latest\n"));
}

/// Asks again until there is an answer.
#[track_caller]
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

// ---- Debian -----------------------------------------------------------------------------------------------------

/// Each line is an answer of its own; what is wrong with it is seen by its place.
const DEBIAN: &str = r#"
set -euo pipefail
. /etc/os-release; echo "$ID"
dpkg --version | grep -o 'package management program'
dpkg --audit
dpkg-query -W -f '${db:Status-Abbrev}\n' | sort | uniq -c | awk '{ print ($1 > 80), $2, $3 }'
apt-get check -qq && echo checked
apt-cache policy bash | awk '$1 == "Installed:" { print $2 }' | grep -xF "$(dpkg-query -W -f '${Version}' bash)" >/dev/null && echo same
apt-get install -qq -y no-such-package 2>&1 | tail -n 1 || echo "apt: $?"
words=(one "two words" three); echo "${#words[@]} ${words[1]^^} $((2 ** 40))"
diff <(printf 'a\nb\n') <(printf 'a\nc\n') || echo "bash: $?"
perl -MPOSIX -e 'print join(",", map { $_ * 2 } 1 .. 3), " ", strftime("%F", gmtime(0)), "\n"'
useradd -m -s /bin/bash ann; su - ann -c 'echo "$(id -un) $PWD $(umask)"; touch kept'
stat -c '%U %G %a' /home/ann/kept
mkdir -p /tmp/made/DEBIAN /tmp/made/opt; echo data >/tmp/made/opt/made
printf 'Package: made\nVersion: 1.0\nArchitecture: all\nMaintainer: test\nDescription: made here\n' >/tmp/made/DEBIAN/control
printf '#!/bin/sh\necho configured "$1" >/opt/note\n' >/tmp/made/DEBIAN/postinst; chmod 755 /tmp/made/DEBIAN/postinst
dpkg-deb --build /tmp/made /tmp/made.deb >/dev/null; apt-get install -qq -y /tmp/made.deb >/dev/null 2>&1
cat /opt/made /opt/note; dpkg -s made | grep Status; dpkg -P made >/dev/null; test ! -e /opt/made && echo purged
"#;

const DEBIAN_SAYS: &str = "debian
package management program
1 ii 
checked
same
E: Unable to locate package no-such-package
apt: 100
3 TWO WORDS 1099511627776
2c2
< b
---
> c
bash: 1
2,4,6 1970-01-01
ann /home/ann 0022
ann ann 644
data
configured configure
Status: install ok installed
purged
";

#[test]
fn a_shell_of_debian_runs_on_any_host() {
    let Some(servin) = Servin::on_any_host() else { return };
    let Some(folder) = packages::folder() else { return };
    load(&servin, &folder, "debian");
    let script = ". /etc/os-release; names=($ID $0); echo ${names[@]^^}";
    servin.go(&["run", "--rm", "test/debian", "bash", "-c", script, "hi"]).expect(0, "DEBIAN HI\n");
}

#[test]
fn debian_keeps_its_packages_users_and_privileges() {
    let Some(servin) = Servin::new() else { return };
    let Some(registry) = Registry::start(false) else { return };
    let Some(folder) = packages::folder() else { return };
    let maker = Servin::without_machine();
    load(&maker, &folder, "debian");
    let name = registry.name("library/debian:stable");
    maker.go(&["tag", "test/debian", &name]).expect(0, "");
    ok(maker.go(&["push", "-q", &name]));

    let run = ["run", "-d", "--name", "box", "--hostname", "deb", &name, "sleep", "infinity"];
    ok(servin.go(&run));
    let exec = |words: &[&str]| servin.go(&[&["exec"], words].concat());
    exec(&["box", "bash", "-c", DEBIAN]).expect(0, DEBIAN_SAYS);
    // Every file of every package, byte for byte, but for what was left out on purpose.
    let verified = exec(&["box", "dpkg", "--verify"]).text();
    let changed = verified.lines().filter(|line| !line.starts_with("missing")).collect::<Vec<_>>();
    assert!(changed.is_empty() && verified.contains("/usr/share/doc/"), "{verified}");
    // A program with the owner's rights has them: /etc/shadow is root's.
    let privileged = exec(&["box", "find", "/usr/bin", "-perm", "-4000", "-user", "root"]).text();
    for program in ["/usr/bin/su\n", "/usr/bin/passwd\n", "/usr/bin/mount\n"] {
        assert!(privileged.contains(program), "{privileged}");
    }
    exec(&["-u", "nobody", "box", "cat", "/etc/shadow"]).expect(1, "");
    let shown = ok(exec(&["-u", "games", "box", "passwd", "-S"])).text();
    assert!(shown.starts_with("games L "), "{shown}");
    exec(&["-u", "www-data:mail", "box", "id"]).expect(0, "uid=33(www-data) gid=8(mail) groups=8(mail)\n");
    exec(&["-w", "/var/mail", "box", "bash", "-lc", "pwd -P; hostname"]).expect(0, "/var/mail\ndeb\n");
    servin.go(&["rm", "-f", "box"]).expect(0, "box\n");
}

// ---- Python -----------------------------------------------------------------------------------------------------

/// Counts its visitors in a database and answers in JSON; SIGTERM ends it in order.
const PROGRAM: &str = r#"
import http.server, json, signal, sqlite3, sys

store = sqlite3.connect("/var/lib/visits.db")
store.execute("create table if not exists visits (path text, body text)")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with store:
            store.execute("insert into visits values (?, ?)", (self.path, json.dumps(value)))
        count, = store.execute("select count(*) from visits").fetchone()
        body = json.dumps({"count": count, "sum": sum(value["numbers"]), "name": value["name"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
http.server.HTTPServer(("", 8000), Handler).serve_forever()
"#;

fn post(address: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    Some(serde_json::from_str(body).unwrap())
}

#[test]
fn a_python_program_serves_the_host_and_keeps_its_database() {
    let Some(servin) = Servin::new() else { return };
    let Some(folder) = packages::folder() else { return };
    load(&servin, &folder, "python");
    let run =
        ["run", "-d", "--name", "web", "-p", "127.0.0.1::8000", "test/python", "python3", "-c", PROGRAM];
    ok(servin.go(&run));
    let body = r#"{"numbers": [1, 2, 39], "name": "Zo\u00eb \u2603"}"#;
    let visit = |count: u64| {
        let address = servin.go(&["port", "web", "8000"]).text().trim().to_owned();
        let answer = until("the server's answer", || post(&address, "/visit", body));
        assert_eq!(answer, serde_json::json!({ "count": count, "sum": 42, "name": "Zo\u{eb} \u{2603}" }));
    };
    visit(1);
    visit(2);
    let python = |code: &str| servin.go(&["exec", "web", "python3", "-c", code]);
    python(
        "import sqlite3; print(*sqlite3.connect('/var/lib/visits.db').execute('select path from visits'))",
    )
    .expect(0, "('/visit',) ('/visit',)\n");
    python("import sys; print('partly'); sys.exit(42)").expect(42, "partly\n");
    let failed = python("import json\nprint('before', flush=True)\njson.loads('{')");
    failed.expect(1, "before\n");
    let lines = failed.stderr.lines().collect::<Vec<_>>();
    assert_eq!(lines.first(), Some(&"Traceback (most recent call last):"), "{failed:#?}");
    assert!(
        lines.last().is_some_and(|line| line.starts_with("json.decoder.JSONDecodeError: ")),
        "{failed:#?}"
    );
    let all = "import hashlib, threading, subprocess, multiprocessing as m\n\
               with m.Pool(2) as pool: print(sum(pool.map(abs, range(-9, 1))))\n\
               t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n\
               print(subprocess.check_output(['cat'], input=b'child').decode(), hashlib.md5(b'').hexdigest()[:8])";
    python(all).expect(0, "45\nthread\nchild d41d8cd9\n");

    // Its own exit code, and its data when it starts again.
    servin.go(&["stop", "web"]).expect(0, "web\n");
    servin.go(&["inspect", "-f", "{{.State.ExitCode}}", "web"]).expect(0, "3\n");
    servin.go(&["start", "web"]).expect(0, "web\n");
    visit(3);
    let logs = servin.go(&["logs", "web"]);
    assert_eq!(logs.stderr.matches("\"POST /visit HTTP/1.0\" 200 -\n").count(), 3, "{logs:#?}");
    servin.go(&["rm", "-f", "web"]).expect(0, "web\n");
    // A program that raises is a container that fails.
    let raised = servin.go(&["run", "--rm", "test/python", "python3", "-c", "raise SystemExit('no')"]);
    raised.expect(1, "");
    assert_eq!(raised.stderr, "no\n");
}

// ---- redis ------------------------------------------------------------------------------------------------------

#[test]
fn redis_answers_its_client_on_both_sides_and_keeps_its_data() {
    let Some(servin) = Servin::new() else { return };
    let Some(folder) = packages::folder() else { return };
    let client = packages::host_program("redis-cli").unwrap();
    load(&servin, &folder, "redis");
    ok(servin.go(&["run", "-d", "--name", "db", "-v", "data:/data", "-p", "127.0.0.1::6379", "test/redis"]));
    let address = |name: &str| servin.go(&["port", name, "6379"]).text().trim().to_owned();
    let here = |address: &str, words: &[&str], input: &[u8]| {
        let (host, port) = address.rsplit_once(':').unwrap();
        let mut command = Command::new(&client);
        command.args(["-h", host, "-p", port]).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(input);
        drop(stdin);
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let ready = |address: &str| {
        until("redis", || (here(address, &["ping"], b"") == "PONG\n").then_some(()));
    };
    let there = |words: &[&str]| servin.go(&[&["exec", "db", "redis-cli"], words].concat());
    let at = address("db");
    ready(&at);
    assert_eq!(here(&at, &["set", "greeting", "from the host"], b""), "OK\n");
    there(&["get", "greeting"]).expect(0, "from the host\n");
    there(&["rpush", "list", "one", "two words", "three"]).expect(0, "3\n");
    assert_eq!(here(&at, &["lrange", "list", "0", "-1"], b""), "one\ntwo words\nthree\n");
    // A megabyte in one value, and a thousand commands in one stream.
    let big = "0123456789abcdef".repeat(1 << 16);
    assert_eq!(here(&at, &["-x", "set", "big"], big.as_bytes()), "OK\n");
    assert!(here(&at, &["get", "big"], b"") == format!("{big}\n"), "a megabyte came back otherwise");
    let many = (0..1000).map(|_| "incr count\n").collect::<String>();
    assert!(here(&at, &[], many.as_bytes()).ends_with("\n1000\n"));
    // It is no root there, and its data lie in the volume.
    servin.go(&["exec", "db", "stat", "-c", "%U %a", "/data"]).expect(0, "redis 750\n");
    servin.go(&["exec", "db", "id", "-un"]).expect(0, "redis\n");
    servin.go(&["stop", "-t", "100", "db"]).expect(0, "db\n");
    servin.go(&["inspect", "-f", "{{.State.ExitCode}}", "db"]).expect(0, "0\n");
    let volume = servin.go(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]).text();
    let dump = fs::read(Path::new(volume.trim()).join("dump.rdb")).unwrap();
    assert!(dump.starts_with(b"REDIS"), "{:?}", &dump[..9]);
    let logs = ok(servin.go(&["logs", "db"])).text();
    assert!(logs.contains("DB saved on disk") && logs.contains("bye bye"), "{logs}");

    // The same container again, and another one on its volume.
    servin.go(&["start", "db"]).expect(0, "db\n");
    let at = address("db");
    ready(&at);
    assert_eq!(here(&at, &["mget", "greeting", "count"], b""), "from the host\n1000\n");
    servin.go(&["rm", "-f", "db"]).expect(0, "db\n");
    assert!(TcpStream::connect(&at).is_err(), "the port is still served");
    ok(servin.go(&["run", "-d", "--name", "db", "-v", "data:/data", "test/redis", "--appendonly", "no"]));
    until("redis", || (there(&["strlen", "big"]).text() == "1048576\n").then_some(()));
    servin.go(&["rm", "-f", "db"]).expect(0, "db\n");
}

// ---- hard cases -------------------------------------------------------------------------------------------------

/// Everything below /hard as a JSON object by path; a path is Latin-1 text, a character for each byte.
const SCAN: &str = r#"
import hashlib, json, os, stat
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFCHR: "char", stat.S_IFBLK: "block"}
seen = {}
for folder, folders, files in os.walk(b"/hard"):
    for name in folders + files:
        path = os.path.join(folder, name)
        s = os.lstat(path)
        kind = KINDS[stat.S_IFMT(s.st_mode)]
        one = {"kind": kind, "mode": stat.S_IMODE(s.st_mode), "uid": s.st_uid, "gid": s.st_gid, "mtime": s.st_mtime_ns}
        if kind == "file":
            with open(path, "rb") as file:
                one["sha256"] = hashlib.sha256(file.read()).hexdigest()
            one["size"] = s.st_size
            if s.st_nlink > 1:
                one["links"] = s.st_nlink
        if kind == "link":
            one["target"] = os.fsdecode(os.readlink(path))
        if kind in ("char", "block"):
            one["device"] = [os.major(s.st_rdev), os.minor(s.st_rdev)]
        names = os.listxattr(path, follow_symlinks=False)
        if names:
            one["attributes"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
        seen[path.removeprefix(b"/hard/").decode("latin-1")] = one
same = [os.stat(f"/hard/{name}").st_ino for name in ("regular", "same", "sub/late")]
assert len(set(same)) == 1, same
print(json.dumps(seen))
"#;

#[test]
fn every_kind_of_tar_entry_is_seen_in_the_container_as_it_was_meant() {
    let Some(servin) = Servin::new() else { return };
    let Some(folder) = packages::folder() else { return };
    load(&servin, &folder, "hard");
    let outcome =
        ok(servin.go_with_input(&["run", "--rm", "-i", "test/hard", "python3", "-"], SCAN.as_bytes()));
    let seen: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let meant: Value = serde_json::from_slice(&fs::read(folder.join("hard.json")).unwrap()).unwrap();
    let (seen, meant) = (seen.as_object().unwrap(), meant.as_object().unwrap());
    assert!(meant.len() > 1500, "{} entries", meant.len());
    let mut wrong = Vec::new();
    for (path, one) in meant {
        if seen.get(path) != Some(one) {
            wrong.push(format!("{path:?}: meant {one}, seen {:?}", seen.get(path).map(Value::to_string)));
        }
    }
    for (path, one) in seen {
        // A directory that no entry made is there for what is in it.
        let inside = |other: &String| other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        let for_others = one["kind"] == "directory" && meant.keys().any(inside);
        if !for_others && !meant.contains_key(path) {
            wrong.push(format!("{path:?}: nothing was meant, seen {one}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), meant.len(), wrong.join("\n"));
}
