//! The commands that run a node: `eval`, `control`, `start`, `run`.

use std::net::SocketAddr;

use consensus_core::data_plane::replay::Before;
use consensus_core::data_plane::ticket::CLOCK_TOLERANCE;
use consensus_core::event::Level;
use consensus_core::guard::Target;
use consensus_core::io::{Finish, Outcome, StateFile};
use consensus_core::limits::Limits;
use consensus_core::node::{Config, Node};
use consensus_core::state::Registration;
use consensus_core::trace::{self, Recorder};
use consensus_core::tunnel::Mode;
use consensus_core::update;
use serde_json::Value;

use super::{Failure, Setup, register, version};
use crate::install;
use crate::runtime_api::{Provider, Runtime};
use crate::settings::{Serving, Sources, Tracing, Tunnel, Updating, UsageError, authority};
use crate::state_dir::{Lock, StateDir};
use crate::system;
use crate::trace::{Traced, create};
use crate::updates::Updates;

/// What a node is to do.
struct Plan {
    tunnel: Option<(Mode, Tunnel)>,
    serving: Serving,
    listen: Option<SocketAddr>,
    registration: Option<Registration>,
    state_dir: StateDir,
    updates: Option<Updates>,
    tracing: Option<Tracing>,
    /// Held until the node ends.
    _lock: Option<Lock>,
}

pub(super) fn eval<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    let finish = evaluate(runtime, sources, setup)?;
    let code = setup.finish(&finish);
    if finish.outcome == Outcome::Done {
        let text = format!("next: {} register (see {0} register --help)", R::PROGRAM);
        setup.note(Level::Info, "next", &text);
    }
    Ok(code)
}

/// Has the machine evaluated; the authorisation is in `join-auth.json` then.
pub(super) fn evaluate<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
) -> Result<Finish, Failure> {
    let tunnel = sources.tunnel()?;
    let tracing = sources.tracing()?;
    let state_dir = setup.open_state_dir()?;
    let registration = state_dir.registration()?;
    register::check(sources, &state_dir, registration.as_ref())?;
    let allow_private_targets = sources.allow_private_targets();
    let serving = Serving { limits: Limits::default(), allow_private_targets };
    let tunnel = Some((Mode::Eval, tunnel));
    let (listen, updates) = (None, None);
    let plan = Plan { tunnel, serving, listen, registration, state_dir, updates, tracing, _lock: None };
    drive(runtime, sources, setup, plan)
}

pub(super) fn control<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    serve(runtime, sources, setup, None)
}

pub(super) fn run<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    serve(runtime, sources, setup, Some(sources.listen()?))
}

fn serve<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    listen: Option<SocketAddr>,
) -> Result<u8, Failure> {
    let tunnel = sources.tunnel()?;
    let serving = sources.serving()?;
    let tracing = sources.tracing()?;
    // Read here, so that a wrong key is told before anything is done.
    let updates = Some(updates(sources, serving.allow_private_targets)?);
    let registration = setup.state_dir().registration()?;
    if registration.is_none() {
        let message = format!(
            "{}: this node is not registered; run `{program} eval`, then `{program} register`",
            setup.common.state_dir.display(),
            program = R::PROGRAM
        );
        return Err(Failure::new(Outcome::NotRegistered, message));
    }
    let state_dir = setup.open_state_dir()?;
    let lock = state_dir.lock()?;
    if lock.is_none() {
        let text =
            "the file system of the state directory has no locks: see to it that no second node runs on it";
        setup.note(Level::Warn, "no_lock", text);
    }
    let tunnel = Some((Mode::Control, tunnel));
    let plan = Plan { tunnel, serving, listen, registration, state_dir, updates, tracing, _lock: lock };
    let finish = drive(runtime, sources, setup, plan)?;
    Ok(setup.finish(&finish))
}

pub(super) fn start<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    let listen = Some(sources.listen()?);
    let serving = sources.serving()?;
    let state_dir = setup.open_state_dir()?;
    let registration = state_dir.registration()?;
    let (tunnel, updates, tracing) = (None, None, None);
    let plan = Plan { tunnel, serving, listen, registration, state_dir, updates, tracing, _lock: None };
    let finish = drive(runtime, sources, setup, plan)?;
    Ok(setup.finish(&finish))
}

/// How a node that serves comes to other releases.
fn updates(sources: &Sources<'_>, allow_private: bool) -> Result<Updates, Failure> {
    let Updating { install_dir, retention, command } = sources.updating()?;
    let server = sources.network().ok().and_then(|network| Target::parse(network.server.base()).ok());
    Ok(Updates {
        install: install::Settings {
            install_dir,
            retention,
            probation: install::PROBATION,
            allow_older: false,
        },
        command,
        keys: sources.release_keys()?,
        server,
        allow_private,
    })
}

fn drive<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    plan: Plan,
) -> Result<Finish, Failure> {
    let manifest = version::manifest(sources, &plan.state_dir)?;
    let mut environment = setup.environment(&plan.state_dir)?;
    environment.listen = plan.listen;
    environment.updates = plan.updates.clone();
    let updates = plan.updates.as_ref().map(|updates| update::Settings {
        way: updates.way(),
        keys: updates.keys.clone(),
        standing: updates.standing(),
    });
    let identity = setup.identity(&plan.state_dir, plan.registration.as_ref())?;

    say_start::<R>(setup, &plan, &manifest.version);
    warn(setup, &plan);

    let registration = plan.registration;
    // The key in the registration signs tickets. That the server signs its handshakes with it, or at all, is for the
    // operator to say (protocol.md section 3): a node that assumed it could not connect to a server that does not.
    let mut limits = plan.serving.limits;
    let (mode, tunnel_url, server_key, candidate_id) = match plan.tunnel {
        Some((mode, tunnel)) => {
            limits.ping_interval = tunnel.limits.ping_interval;
            limits.silence_limit = tunnel.limits.silence_limit;
            (Some(mode), tunnel.url.as_str().to_string(), tunnel.server_key, tunnel.candidate_id)
        }
        None => (None, String::new(), None, None),
    };
    let config = Config {
        mode,
        tunnel_url,
        server_key,
        identity_seed: identity.seed,
        candidate_id,
        registration,
        manifest,
        limits,
        allow_private_targets: plan.serving.allow_private_targets,
        spent_before: plan.state_dir.spent_before(),
        updates: updates.unwrap_or_default(),
    };
    if mode == Some(Mode::Control) && config.spent_before == Before::Unclean {
        let text = format!(
            "the process before this one did not come to its end, or {} is damaged: tickets issued up to {} s from \
             now may have been spent, and are refused",
            plan.state_dir.path(StateFile::SpentTickets).display(),
            CLOCK_TOLERANCE
        );
        setup.note(Level::Warn, "unclean_stop", &text);
    }
    system::raise_file_limit();
    let seed = system::seed().map_err(Failure::internal)?;
    let now = system::now();
    let driven = match plan.tracing {
        None => runtime.drive(Node::new(config, Provider::default(), seed, now), environment),
        Some(tracing) => {
            let file = create(&tracing.path).map_err(|error| unwritable(&tracing, &error))?;
            say_trace(setup, &tracing);
            let settings = trace::Settings {
                program: R::PROGRAM.to_string(),
                program_version: env!("CARGO_PKG_VERSION").to_string(),
                secrets: tracing.secrets,
                limit: tracing.limit,
            };
            let recorder = Recorder::new(settings, config, seed, now);
            runtime.drive(Traced::new(recorder, file, tracing.path, setup.log.clone()), environment)
        }
    };
    driven.map_err(Failure::internal)
}

fn unwritable(tracing: &Tracing, error: &std::io::Error) -> UsageError {
    let what = match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            "there is a file of that name, which is not written over".to_string()
        }
        _ => error.to_string(),
    };
    UsageError::new(&format!("--trace {}: {what}", tracing.path.display()))
}

fn say_trace(setup: &Setup, tracing: &Tracing) {
    let path = tracing.path.display();
    if tracing.secrets {
        let text = format!(
            "{path} gets this node's PRIVATE KEY and everything that its clients send: keep it as you keep the key"
        );
        setup.note(Level::Warn, "trace", &text);
    } else {
        let text =
            format!("what this node does is recorded in {path}, without secrets: it cannot be replayed");
        setup.note(Level::Info, "trace", &text);
    }
}

/// The one line that says what this process is.
fn say_start<R: Runtime>(setup: &Setup, plan: &Plan, version: &str) {
    let state = setup.common.state_dir.to_string_lossy().into_owned();
    let mut text = format!("{} {version}", R::PROGRAM);
    let mut members = vec![
        ("program", Value::from(R::PROGRAM)),
        ("version", Value::from(version)),
        ("shell", Value::from(R::SHELL)),
        ("pid", Value::from(std::process::id())),
        ("state_dir", Value::from(state.as_str())),
    ];
    match &plan.registration {
        Some(registration) => {
            text.push_str(&format!(", node {}", registration.node_id));
            members.push(("node_id", Value::from(registration.node_id.as_str())));
        }
        None => text.push_str(", not registered"),
    }
    if let Some((mode, tunnel)) = &plan.tunnel {
        let server = authority(tunnel.url.as_str());
        text.push_str(&format!(", {mode} with {server}"));
        members.push(("mode", Value::from(mode.as_str())));
        members.push(("server", Value::from(server)));
    }
    if let Some(listen) = plan.listen {
        text.push_str(&format!(", local API at {listen}"));
        members.push(("listen", Value::from(listen.to_string())));
    }
    text.push_str(&format!(", state in {state}"));
    setup.log.note(Level::Info, "node", "starting", &text, &members);
}

fn warn(setup: &Setup, plan: &Plan) {
    if let Some((_, tunnel)) = &plan.tunnel {
        setup.warn(&tunnel.warnings);
        let named = plan.registration.as_ref().and_then(Registration::server_key);
        if tunnel.server_key.is_some() && named.is_some() && tunnel.server_key != named {
            setup.warn(&["--server-key is not the key that the network named at registration".to_string()]);
        }
    }
    if plan.serving.allow_private_targets {
        setup.warn(&[
            "--allow-private-targets: STRANGERS CAN REACH THIS MACHINE'S PRIVATE NETWORK THROUGH THIS NODE, \
                      cloud metadata services included; never use it outside a lab"
                .to_string(),
        ]);
    }
    if let Some(listen) = plan.listen {
        if !listen.ip().is_loopback() {
            setup.warn(&[format!(
                "the local API listens on {listen}: whoever reaches it can fetch and measure through this node"
            )]);
        }
    }
}
