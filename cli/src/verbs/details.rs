//! A container with docker's field names. What docker has and servin has not is there with the value that says so.

use serde_json::{Map, Value, json};
use servin_engine::container::{
    Config, Health, Plan, Privileges, Request, Text, machine_memory, short, signal,
};
use servin_engine::image::Images;
use servin_engine::network::{Attachment, Mode, Networking, built_in_id};
use servin_engine::store::{Record, State, Store, disk_usage};
use servin_engine::time::rfc3339;
use servin_engine::volume::Volumes;
use servin_init::proto::{Network, NetworkV6};

use super::containers::config;
use super::port;
use crate::error::Result;

/// Everything that is known of a container; with what it takes on disk if that is asked for.
pub(crate) fn container(store: &Store, record: &Record, with_size: bool) -> Result<Value> {
    let Config { request, plan } = config(record)?;
    let dir = store.container_dir(&record.id);
    let texts = |list: &[Text]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let running = matches!(record.state, State::Running | State::Paused);
    let (entrypoint, cmd) = program(&request, &plan, record, store);
    let health = plan.health.as_ref().and_then(|_| Health::read(&dir));
    let mut out = json!({
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Path": plan.argv.first().map(ToString::to_string),
        "Args": texts(plan.argv.get(1..).unwrap_or_default()),
        "State": state(record, health.as_ref()),
        "Image": record.image.map(|id| id.to_string()).unwrap_or_default(),
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": if request.log.is_none() { String::new() } else { dir.join("log").display().to_string() },
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": "erofs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(&request, &plan),
        "Mounts": mounts(&request, volumes(store, record)?),
        "Config": {
            "Hostname": plan.hostname,
            "Domainname": request.domainname.clone().unwrap_or_default(),
            "User": plan.user,
            "AttachStdin": request.stdin && !request.detach,
            "AttachStdout": !request.detach,
            "AttachStderr": !request.detach,
            "Tty": request.terminal,
            "OpenStdin": request.stdin,
            "StdinOnce": request.stdin && !request.detach,
            "Env": texts(&plan.env),
            "Cmd": cmd,
            "Healthcheck": plan.health.as_ref().map(|check| check.describe()),
            "Image": request.root.name(),
            "Volumes": null,
            "WorkingDir": plan.cwd.to_string(),
            "Entrypoint": entrypoint,
            "OnBuild": null,
            "Labels": object(&plan.labels),
            "StopSignal": signal::name(plan.stop_signal),
            "StopTimeout": plan.stop_timeout,
        },
    });
    if let Some(object) = out.as_object_mut() {
        let exposed: Map<String, Value> = plan.exposed.iter().map(|port| (port.clone(), json!({}))).collect();
        if let Some(config) = object.get_mut("Config") {
            extend(config, json!({ "ExposedPorts": exposed }));
        }
        object.insert("NetworkSettings".into(), network_settings(record, &request.network, &plan, running));
        object.insert("GraphDriver".into(), json!({ "Name": "erofs", "Data": null }));
        if with_size {
            let own = disk_usage(&dir);
            let image = record.image.map(|id| Images::new(store).find(&id.to_string())).transpose()?;
            object.insert("SizeRw".into(), own.into());
            object.insert("SizeRootFs".into(), (own + image.map_or(0, |image| image.size)).into());
        }
    }
    Ok(out)
}

fn state(record: &Record, health: Option<&Health>) -> Value {
    let time = |at: Option<i64>| at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), rfc3339);
    let running = matches!(record.state, State::Running | State::Paused | State::Restarting);
    let mut state = json!({
        "Status": record.state.as_str(),
        "Running": running,
        "Paused": record.state == State::Paused,
        "Restarting": record.state == State::Restarting,
        "OOMKilled": record.oom,
        "Dead": false,
        "Pid": record.pid.unwrap_or(0),
        "ExitCode": record.exit_code.unwrap_or(0),
        "Error": record.error,
        "StartedAt": time(record.started_ns),
        "FinishedAt": time(record.finished_ns),
    });
    // As with docker, the field is there only where something is checked.
    if let (Some(health), Some(object)) = (health, state.as_object_mut()) {
        object.insert("Health".into(), serde_json::to_value(health).unwrap_or_default());
    }
    state
}

/// The entrypoint and the command, the image's where the user gave none; null where there is none.
fn program(request: &Request, plan: &Plan, record: &Record, store: &Store) -> (Value, Value) {
    let image = record.image.and_then(|id| Images::new(store).find(&id.to_string()).ok());
    let entrypoint = match (&request.entrypoint, image) {
        // What comes before the arguments is the entrypoint, whoever named it.
        _ if !request.args.is_empty() => plan.argv.len().saturating_sub(request.args.len()),
        (Some(_), _) => plan.argv.len(),
        (None, image) => image.map_or(0, |image| image.config.process.entrypoint.len()),
    };
    let (entrypoint, cmd) = plan.argv.split_at(entrypoint.min(plan.argv.len()));
    let list = |words: &[Text]| match words {
        [] => Value::Null,
        words => words.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
    };
    (list(entrypoint), list(cmd))
}

fn object(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

fn volumes(store: &Store, record: &Record) -> Result<Vec<Value>> {
    let volumes = Volumes::new(store);
    let show = |used: servin_engine::volume::Use| {
        json!({
            "Type": "volume", "Name": used.volume, "Source": volumes.path(&used.volume).display().to_string(),
            "Destination": used.target.to_string(), "Driver": "local",
            "Mode": if used.read_only { "ro" } else { "" }, "RW": !used.read_only, "Propagation": "",
        })
    };
    Ok(volumes.of(&record.id)?.into_iter().map(show).collect())
}

fn mounts(request: &Request, volumes: Vec<Value>) -> Vec<Value> {
    let binds = request.binds.iter().map(|bind| {
        json!({
            "Type": "bind", "Source": bind.host.to_string(), "Destination": bind.target.to_string(),
            "Mode": if bind.read_only { "ro" } else { "" }, "RW": !bind.read_only, "Propagation": "rprivate",
        })
    });
    let tmpfs = request.tmpfs.iter().map(|tmpfs| {
        json!({
            "Type": "tmpfs", "Source": "", "Destination": tmpfs.target.to_string(), "Mode": "",
            "RW": !tmpfs.read_only, "Propagation": "",
        })
    });
    binds.chain(volumes).chain(tmpfs).collect()
}

fn host_config(request: &Request, plan: &Plan) -> Value {
    let limits = &request.limits;
    let Privileges { cap_add, cap_drop, privileged, no_new_privileges, groups } = &request.privileges;
    let list = |words: &[String]| if words.is_empty() { Value::Null } else { words.into() };
    let binds = request
        .binds
        .iter()
        .map(|bind| format!("{}:{}{}", bind.host, bind.target, if bind.read_only { ":ro" } else { "" }));
    let named = request.volumes.iter().filter_map(|used| {
        let read_only = if used.read_only { ":ro" } else { "" };
        Some(format!("{}:{}{read_only}", used.name.as_ref()?, used.target))
    });
    let binds: Vec<String> = binds.chain(named).collect();
    let hosts: Vec<String> =
        request.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect();
    // As docker shows them, no limit is -1.
    let number = |value: u64| i64::try_from(value).unwrap_or(-1);
    let ulimits: Vec<Value> = limits
        .ulimits
        .iter()
        .map(|limit| json!({ "Name": limit.name, "Soft": number(limit.soft), "Hard": number(limit.hard) }))
        .collect();
    let mut options = Map::new();
    if let Some(size) = request.log.max_size {
        options.insert("max-size".into(), size.to_string().into());
    }
    if let Some(files) = request.log.max_file {
        options.insert("max-file".into(), files.to_string().into());
    }
    let security = if *no_new_privileges { vec!["no-new-privileges".to_owned()] } else { Vec::new() };
    let mut config = json!({
        "Binds": if binds.is_empty() { Value::Null } else { binds.into() },
        "ContainerIDFile": "",
        "LogConfig": { "Type": request.log.driver, "Config": options },
        "NetworkMode": request.network.attachments.first().map_or("none", |first| first.mode.name()),
        "PortBindings": port::map(&plan.ports, &published(plan)),
        "RestartPolicy": { "Name": request.restart.name().0, "MaximumRetryCount": request.restart.name().1 },
        "StorageOpt": request.disk.map(|size| json!({ "size": size.to_string() })),
        "AutoRemove": request.remove,
        "VolumeDriver": "",
        "VolumesFrom": null,
        "CapAdd": list(cap_add),
        "CapDrop": list(cap_drop),
        "ExtraHosts": list(&hosts),
        "GroupAdd": list(groups),
        "OomScoreAdj": limits.oom_score_adj.unwrap_or(0),
        "Privileged": privileged,
        "ReadonlyRootfs": request.read_only,
        "SecurityOpt": list(&security),
        "Tmpfs": request.tmpfs.iter().map(|tmpfs| (tmpfs.target.to_string(), "".into())).collect::<Map<_, _>>(),
        "ShmSize": limits.shm_size.unwrap_or(64 << 20),
        "Sysctls": if limits.sysctls.is_empty() { Value::Null } else { object(&limits.sysctls).into() },
        "Runtime": "servin",
        "Isolation": "",
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "Memory": request.memory,
        "NanoCpus": request.cpus.nano,
        "CpuPeriod": limits.cpu_period.unwrap_or(0),
        "CpuQuota": limits.cpu_quota.unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "MemorySwap": limits.memory_swap.unwrap_or(0),
        "OomKillDisable": false,
        "Init": request.init,
        "PidsLimit": limits.pids,
        "Ulimits": if ulimits.is_empty() { Value::Null } else { ulimits.into() },
        // Not docker's: what the machine has.
        "MachineMemory": machine_memory(request.memory),
        "MachineCpus": request.cpus.count(),
    });
    let network = &request.network;
    extend(
        &mut config,
        json!({
            "PublishAllPorts": network.publish_all, "Dns": network.dns, "DnsSearch": network.dns_search,
            "DnsOptions": network.dns_options,
        }),
    );
    config
}

/// The container's ports that are published.
fn published(plan: &Plan) -> Vec<String> {
    let mut ports: Vec<String> =
        plan.ports.iter().map(|one| format!("{}/{}", one.guest, one.protocol)).collect();
    ports.dedup();
    ports
}

/// The networks as docker describes them; without addresses for a container that does not run. What is said beside them is
/// said of the first.
fn network_settings(container: &Record, networking: &Networking, plan: &Plan, running: bool) -> Value {
    let mut networks: Map<String, Value> = networking
        .attachments
        .iter()
        .map(|one| (one.mode.network().to_owned(), attachment(container, networking, one, running)))
        .collect();
    let mut settings = match networking.attachments.first() {
        Some(first) if running => addresses(Some(&networking.network(first)), Some(first)),
        _ => json!({ "IPAddress": "", "Gateway": "", "MacAddress": "" }),
    };
    if networks.is_empty() {
        networks.insert("none".into(), addresses(None, None));
    }
    let ports =
        if running && networking.has_card() { port::map(&plan.ports, &plan.exposed) } else { json!({}) };
    extend(&mut settings, json!({ "Ports": ports, "Networks": networks }));
    settings
}

/// What docker tells of one network of a container.
fn attachment(container: &Record, networking: &Networking, one: &Attachment, running: bool) -> Value {
    let network = networking.network(one);
    let mut about = if running { addresses(Some(&network), Some(one)) } else { addresses(None, None) };
    if one.mode == Mode::Own {
        let id = built_in_id(one.mode.network());
        extend(&mut about, json!({ "NetworkID": id, "IPAMConfig": null, "Aliases": null }));
    }
    if let Some(place) = &one.place {
        let asked = one.address.map(|address| json!({ "IPv4Address": address }));
        let own = [container.name.clone(), short(&container.id)];
        let names: Vec<&String> = own.iter().chain(&place.aliases).collect();
        extend(
            &mut about,
            json!({ "NetworkID": place.id, "IPAMConfig": asked, "Aliases": place.aliases, "DNSNames": names }),
        );
    }
    about
}

fn addresses(network: Option<&Network>, one: Option<&Attachment>) -> Value {
    let v4 = |ip: fn(&Network) -> [u8; 4]| {
        network.map_or(String::new(), |network| std::net::Ipv4Addr::from(ip(network)).to_string())
    };
    let six = network.and_then(|network| network.v6);
    let v6 = |ip: fn(&NetworkV6) -> [u8; 16]| {
        six.as_ref().map_or(String::new(), |six| std::net::Ipv6Addr::from(ip(six)).to_string())
    };
    json!({
        "IPAddress": v4(|network| network.address),
        "IPPrefixLen": network.map_or(0, |network| network.prefix),
        "Gateway": v4(|network| network.gateway),
        "GlobalIPv6Address": v6(|six| six.address),
        "GlobalIPv6PrefixLen": if six.is_some() { 64 } else { 0 },
        "IPv6Gateway": v6(|six| six.gateway),
        "MacAddress": one.map_or(String::new(), |one| one.mac().to_string()),
    })
}

/// Adds the fields of another object.
fn extend(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use servin_engine::container::{RootSource, create};
    use servin_engine::network::{Networks, NewNetwork};
    use servin_engine::volume::VolumeMount;

    use super::*;

    fn inspected(store: &Store, change: impl FnOnce(&mut Request)) -> Value {
        let mut request = Request::new(RootSource::Directory("/srv/root".into()));
        request.args = vec!["-c".into(), "true".into()];
        change(&mut request);
        container(store, &create(store, &request).unwrap(), false).unwrap()
    }

    #[test]
    fn the_command_is_what_runs_and_volumes_are_binds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let seen = inspected(&store, |request| {
            request.entrypoint = Some("/bin/sh".into());
            let volume = |name: Option<&str>, target: &str, read_only| VolumeMount {
                name: name.map(Into::into),
                target: target.into(),
                read_only,
                no_copy: false,
            };
            request.volumes = vec![
                volume(Some("data"), "/d", true),
                volume(Some("logs"), "/l", false),
                volume(None, "/x", false),
            ];
        });
        assert_eq!(seen["Config"]["Entrypoint"], json!(["/bin/sh"]));
        assert_eq!(seen["Config"]["Cmd"], json!(["-c", "true"]));
        assert_eq!(seen["HostConfig"]["Binds"], json!(["data:/d:ro", "logs:/l"]));
        let alone = inspected(&store, |request| {
            request.entrypoint = Some("/bin/true".into());
            request.args.clear();
        });
        assert_eq!(
            (&alone["Config"]["Entrypoint"], &alone["Config"]["Cmd"]),
            (&json!(["/bin/true"]), &Value::Null)
        );
        let none = inspected(&store, |_| {});
        assert_eq!(
            (&none["Config"]["Entrypoint"], &none["Config"]["Cmd"]),
            (&Value::Null, &json!(["-c", "true"]))
        );
    }

    #[test]
    fn every_network_of_a_container_is_told_with_its_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for (name, subnet) in [("front", "10.7.0.0/24"), ("back", "10.8.0.0/24")] {
            let (name, subnet) = (name.to_owned(), Some(subnet.to_owned()));
            Networks::new(&store).create(&NewNetwork { name, subnet, ..NewNetwork::default() }).unwrap();
        }
        let mut request = Request::new(RootSource::Directory("/r".into()));
        request.args = vec!["x".into()];
        request.network.push(Attachment::new(Mode::Shared("front".into())));
        request.network.push(Attachment::new(Mode::Shared("back".into())));
        let record = create(&store, &request).unwrap();
        let settings = |running| {
            let Config { request, plan } = config(&record).unwrap();
            network_settings(&record, &request.network, &plan, running)
        };
        let told = settings(true);
        let names: Vec<&String> = told["Networks"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["back", "bridge", "front"]);
        assert_eq!((&told["IPAddress"], &told["Gateway"]), (&json!("10.0.2.15"), &json!("10.0.2.2")));
        let of = |name: &str, field: &str| told["Networks"][name][field].clone();
        assert_eq!(
            (of("front", "IPAddress"), of("front", "Gateway")),
            (json!("10.7.0.2"), json!("10.7.0.1"))
        );
        assert_eq!(of("back", "MacAddress"), json!("02:42:0a:08:00:02"));
        assert_eq!(of("back", "DNSNames")[0], json!(record.name));
        let resting = settings(false);
        assert_eq!(
            (&resting["IPAddress"], &resting["Networks"]["back"]["IPAddress"]),
            (&json!(""), &json!(""))
        );
        let none = network_settings(&record, &Networking::none(), &config(&record).unwrap().plan, true);
        assert_eq!(none["Networks"]["none"]["IPAddress"], json!(""));
    }

    #[test]
    fn a_container_that_does_not_run_is_on_its_network_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let seen = inspected(&store, |_| {});
        let bridge = &seen["NetworkSettings"]["Networks"]["bridge"];
        assert_eq!(
            (&bridge["IPAddress"], bridge["NetworkID"].as_str().map(str::len)),
            (&json!(""), Some(64))
        );
    }
}
