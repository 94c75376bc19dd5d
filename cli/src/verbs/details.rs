//! A container with docker's field names.

use serde_json::{Value, json};
use servin_engine::container::{Config, RootSource, Text};
use servin_engine::store::{Record, State, Store};
use servin_engine::time::rfc3339;

use super::containers::config;
use crate::error::Result;

/// Everything that is known of a container.
pub(crate) fn container(store: &Store, record: &Record) -> Result<Value> {
    let Config { request, plan } = config(record)?;
    let time = |at: Option<i64>| at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), rfc3339);
    let texts = |list: &[Text]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let image = match &request.root {
        RootSource::Image(name) => name.clone(),
        RootSource::Directory(dir) => dir.to_string(),
    };
    let mounts: Vec<Value> = request
        .binds
        .iter()
        .map(|bind| {
            json!({
                "Type": "bind", "Source": bind.host.to_string(), "Destination": bind.target.to_string(),
                "Mode": if bind.read_only { "ro" } else { "" }, "RW": !bind.read_only,
            })
        })
        .collect();
    let binds: Vec<String> = request
        .binds
        .iter()
        .map(|bind| format!("{}:{}{}", bind.host, bind.target, if bind.read_only { ":ro" } else { "" }))
        .collect();
    let labels: serde_json::Map<String, Value> =
        plan.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let running = matches!(record.state, State::Running | State::Paused);
    Ok(json!({
        "Id": record.id,
        "Created": rfc3339(record.created_ns),
        "Path": plan.argv.first().map(ToString::to_string),
        "Args": texts(plan.argv.get(1..).unwrap_or_default()),
        "State": {
            "Status": record.state.as_str(),
            "Running": running,
            "Paused": record.state == State::Paused,
            "Restarting": false,
            "OOMKilled": record.oom,
            "Dead": false,
            "Pid": record.pid.unwrap_or(0),
            "ExitCode": record.exit_code.unwrap_or(0),
            "Error": record.error,
            "StartedAt": time(record.started_ns),
            "FinishedAt": time(record.finished_ns),
        },
        "Image": record.image.map(|id| id.to_string()),
        "LogPath": store.container_dir(&record.id).join("log").display().to_string(),
        "Name": format!("/{}", record.name),
        "RestartCount": 0,
        "Platform": "linux",
        "HostConfig": {
            "Binds": binds,
            "AutoRemove": request.remove,
            "Memory": request.memory,
            "NanoCpus": request.cpus.nano,
            "NetworkMode": "none",
            "ReadonlyRootfs": request.read_only,
            "Tmpfs": request.tmpfs.iter().map(|tmpfs| tmpfs.target.to_string()).collect::<Vec<_>>(),
        },
        "Mounts": mounts,
        "Config": {
            "Hostname": plan.hostname,
            "User": plan.user,
            "AttachStdin": request.stdin && !request.detach,
            "AttachStdout": !request.detach,
            "AttachStderr": !request.detach,
            "Tty": request.terminal,
            "OpenStdin": request.stdin,
            "StdinOnce": request.stdin && !request.detach,
            "Env": texts(&plan.env),
            "Cmd": texts(&request.args),
            "Image": image,
            "WorkingDir": plan.cwd.to_string(),
            "Labels": labels,
            "StopSignal": plan.stop_signal.to_string(),
            "StopTimeout": plan.stop_timeout,
        },
    }))
}
