//! `--mount`: fields after commas, as docker's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use servin_engine::container::{Bind, Consistency, Text, Tmpfs};
use servin_engine::volume::VolumeMount;

use super::volume::Mounted;
use super::{size, volume};

/// The fields that were typed, before it is known what of.
#[derive(Debug, Default)]
struct Fields {
    kind: Option<String>,
    source: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    read_only: bool,
    no_copy: bool,
    consistency: Consistency,
    size: Option<u64>,
    mode: Option<u32>,
    /// The names of fields that only one kind of mount has.
    only: Vec<(&'static str, String)>,
}

/// `type=bind|volume|tmpfs,source=...,target=...[,readonly]`; the type is `volume` without.
pub(crate) fn mount(word: &OsStr, cwd: &Path) -> Result<Mounted, String> {
    let mut fields = Fields::default();
    for field in split(word.as_bytes())? {
        read(&mut fields, &field)?;
    }
    let kind = fields.kind.as_deref().unwrap_or("volume");
    if let Some((owner, name)) = fields.only.iter().find(|(owner, _)| *owner != kind) {
        return Err(format!("\"{name}\" belongs to type={owner}, and this is type={kind}"));
    }
    let target = fields.target.as_deref().ok_or("\"target\" is missing: where in the container")?;
    let target = volume::target_path(target)?;
    let read_only = fields.read_only;
    match (kind, fields.source) {
        ("bind", None) => Err("\"source\" is missing: a path of the host".into()),
        ("bind", Some(source)) => {
            let host = Text::from(volume::clean(&cwd.join(OsStr::from_bytes(&source))));
            Ok(Mounted::Bind(Bind {
                host,
                target,
                read_only,
                must_exist: true,
                consistency: fields.consistency,
            }))
        }
        ("volume", source) => {
            let name = source.map(|name| volume::volume_name(&name)).transpose()?;
            Ok(Mounted::Volume(VolumeMount { name, target, read_only, no_copy: fields.no_copy }))
        }
        ("tmpfs", Some(_)) => Err("\"source\": a tmpfs has none".into()),
        ("tmpfs", None) => Ok(Mounted::Tmpfs(Tmpfs {
            target,
            size: fields.size,
            mode: fields.mode.unwrap_or(0o1777),
            read_only,
            no_exec: true,
            no_suid: true,
            no_dev: true,
        })),
        (other, _) => Err(format!("type={other} is not supported: it is bind, volume or tmpfs")),
    }
}

fn read(fields: &mut Fields, field: &[u8]) -> Result<(), String> {
    let (name, value) = match field.iter().position(|byte| *byte == b'=') {
        Some(at) => (field.get(..at).unwrap_or_default(), field.get(at + 1..)),
        None => (field, None),
    };
    let shown = String::from_utf8_lossy(name).to_lowercase();
    let text = || value.map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
    let flag = || match text().as_str() {
        "" if value.is_none() => Ok(true),
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("{shown}={other}: it is true or false")),
    };
    match shown.as_str() {
        "readonly" | "ro" => fields.read_only = flag()?,
        "volume-nocopy" => {
            fields.no_copy = flag()?;
            fields.only.push(("volume", shown));
        }
        _ if value.is_none() => return Err(format!("\"{shown}\" needs a value, as {shown}=VALUE")),
        "type" => fields.kind = Some(text().to_lowercase()),
        "source" | "src" => fields.source = value.map(<[u8]>::to_vec),
        "target" | "destination" | "dst" => fields.target = value.map(<[u8]>::to_vec),
        "consistency" => {
            fields.consistency = match text().as_str() {
                "consistent" => Consistency::Consistent,
                "cached" | "default" => Consistency::Cached,
                "delegated" => Consistency::Delegated,
                other => {
                    return Err(format!("consistency={other}: it is consistent, cached or delegated"));
                }
            };
            fields.only.push(("bind", shown));
        }
        "tmpfs-size" => {
            let bytes = size::bytes(&text()).map_err(|why| format!("tmpfs-size: {why}"))?;
            fields.size = Some(bytes).filter(|bytes| *bytes > 0);
            fields.only.push(("tmpfs", shown));
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(&text(), 8).ok().filter(|mode| *mode <= 0o7777);
            fields.mode = Some(mode.ok_or("tmpfs-mode is an octal number up to 7777")?);
            fields.only.push(("tmpfs", shown));
        }
        _ => return Err(format!("the field \"{shown}\" is not supported")),
    }
    Ok(())
}

/// Fields between commas; one in double quotes may hold commas, and a quote doubled.
fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut fields = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    let mut quoted = false;
    while let Some(byte) = bytes.next() {
        let Some(field) = fields.last_mut() else { break };
        match byte {
            b'"' if !quoted && field.is_empty() => quoted = true,
            b'"' if quoted && bytes.peek() == Some(&b'"') => {
                bytes.next();
                field.push(b'"');
            }
            b'"' if quoted => quoted = false,
            b',' if !quoted => fields.push(Vec::new()),
            byte => field.push(byte),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mounted, String> {
        super::mount(OsStr::new(text), Path::new("/here"))
    }

    fn volume(name: Option<&str>, target: &str, read_only: bool, no_copy: bool) -> Mounted {
        let name = name.map(Into::into);
        Mounted::Volume(VolumeMount { name, target: target.into(), read_only, no_copy })
    }

    #[test]
    fn each_type_is_read_with_dockers_names() {
        let bind = |host: &str, read_only| {
            let consistency = Consistency::default();
            Mounted::Bind(Bind {
                host: host.into(),
                target: "/b".into(),
                read_only,
                must_exist: true,
                consistency,
            })
        };
        assert_eq!(mount("type=bind,source=/a,target=/b").unwrap(), bind("/a", false));
        assert_eq!(mount("type=bind,src=./a,dst=/b,ro").unwrap(), bind("/here/a", true));
        assert_eq!(mount("type=bind,src=x,destination=/b/,readonly=true").unwrap(), bind("/here/x", true));
        assert_eq!(mount(r#"type=bind,"src=/a,""b",target=/b"#).unwrap(), bind(r#"/a,"b"#, false));
        assert_eq!(mount("source=data,target=/v").unwrap(), volume(Some("data"), "/v", false, false));
        assert_eq!(
            mount("type=volume,target=/v,volume-nocopy,readonly=1").unwrap(),
            volume(None, "/v", true, true)
        );
        let Mounted::Tmpfs(tmpfs) = mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=700").unwrap()
        else {
            panic!("no tmpfs")
        };
        assert_eq!((tmpfs.size, tmpfs.mode, tmpfs.read_only), (Some(64 << 20), 0o700, false));
    }

    #[test]
    fn a_bind_has_a_consistency() {
        let of = |text: &str| match mount(&format!("type=bind,source=/a,target=/b{text}")).unwrap() {
            Mounted::Bind(bind) => bind.consistency,
            other => panic!("{other:?}"),
        };
        assert_eq!(of(""), Consistency::Cached);
        assert_eq!(of(",consistency=default"), Consistency::Cached);
        assert_eq!(of(",consistency=consistent"), Consistency::Consistent);
        assert_eq!(of(",consistency=delegated"), Consistency::Delegated);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, why) in [
            ("type=bind,target=/b", "source"),
            ("type=bind,source=/a", "target"),
            ("type=npipe,source=/a,target=/b", "npipe"),
            ("type=bind,source=/a,target=/b,volume-nocopy", "volume-nocopy"),
            ("type=volume,target=/b,tmpfs-size=1", "tmpfs-size"),
            ("type=volume,target=/b,consistency=cached", "consistency"),
            ("type=bind,source=/a,target=/b,consistency=loose", "loose"),
            ("type=tmpfs,source=x,target=/b", "source"),
            ("type=bind,source=/a,target=/b,bind-propagation=shared", "bind-propagation"),
            ("type=bind,source=/a,target=relative", "begin with /"),
            ("source=a/b,target=/b", "a/b"),
            ("target", "needs a value"),
            ("readonly=perhaps,target=/b", "perhaps"),
            ("\"target=/b", "quote"),
        ] {
            let error = mount(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
