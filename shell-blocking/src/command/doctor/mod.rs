//! `doctor`: what is wrong with this node, and how it is mended. Looks, and changes nothing;
//! [`consensus_core::doctor`] judges what is found.

mod bundle;
mod local;
mod route;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consensus_core::doctor::{
    self, Answer, Answers, Api, Check, Findings, Left, Lock, Registered, Running, Settings, Shaken,
};
use consensus_core::event::Level;
use consensus_core::io::{Fetch, FetchErrorKind};
use consensus_core::proxy::Proxies;
use consensus_core::registration::operator_request;
use consensus_core::release::latest;
use consensus_core::release::manifest::Manifest;
use serde_json::{Value, json};

use super::{Failure, Surroundings, print, version};
use crate::log::{Format, Log};
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::settings::{File, KNOWN, Network, Sources, Tunnel, authority, proxy_warnings};
use crate::state_dir::StateDir;
use crate::system;
use crate::tls::Tls;

/// For one step on the way to the server.
const STEP: Duration = Duration::from_secs(5);

/// For all of them. With what supervisors may take, it ends within the 30 seconds that its help promises.
const WHOLE: Duration = Duration::from_secs(22);

/// For the local API, which is on this machine.
const LOCAL: Duration = Duration::from_secs(2);

/// When all must be over.
#[derive(Clone, Copy, Debug)]
struct Time(Instant);

impl Time {
    /// What the next step may take; `None` where nothing is left.
    fn step(self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(STEP))
    }
}

/// The settings that doctor itself goes by, as far as they are right.
struct Known {
    dir: Option<PathBuf>,
    network: Option<Network>,
    tunnel: Option<Tunnel>,
    proxies: Option<Proxies>,
    tls: Option<Tls>,
    listen: Option<std::net::SocketAddr>,
    install_dir: Option<PathBuf>,
    registry: Option<PathBuf>,
}

pub(super) fn run<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let bundle = sources.options.get("--bundle").map(PathBuf::from);
    let mut settings = Settings::default();
    let dir = right(sources.state_dir(), &mut settings);
    let file = dir.as_ref().and_then(|dir| right(File::read(dir), &mut settings)).flatten();
    let sources = Sources { file: file.as_ref(), ..*sources };
    let known = known(dir, &sources, &mut settings);
    let (findings, health) = find(runtime, &sources, &known, settings);
    let lines = doctor::examine(&findings);
    let inside = match &bundle {
        Some(path) => Some(bundle::write::<R>(path, &sources, &known, &findings, health)?),
        None => None,
    };
    let text = if sources.options.contains_key("--json") {
        let failed = lines.iter().filter(|line| line.verdict == doctor::Verdict::Failed).count();
        let checks: Vec<Value> = lines.iter().map(doctor::Line::to_value).collect();
        let bundle = bundle.as_ref().map(|path| json!({ "path": path.to_string_lossy(), "files": inside }));
        format!("{}\n", json!({ "failed": failed, "checks": checks, "bundle": bundle }))
    } else {
        let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        if let (Some(path), Some(inside)) = (&bundle, &inside) {
            text.push_str(&format!("\n{} (mode 0600) has:\n", path.display()));
            text.extend(inside.iter().map(|name| format!("  {name}\n")));
        }
        text
    };
    match print(surroundings.stdout, &text) {
        0 => Ok(doctor::exit_code(&lines)),
        code => Ok(code),
    }
}

/// A value, or nothing and one error more.
fn right<T, E: ToString>(value: Result<T, E>, settings: &mut Settings) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            if !settings.errors.contains(&text) {
                settings.errors.push(text);
            }
            None
        }
    }
}

/// Reads every setting, whichever command it is of.
fn known(dir: Option<PathBuf>, sources: &Sources<'_>, settings: &mut Settings) -> Known {
    for known in KNOWN {
        if right(known.find(sources), settings).flatten().is_some() {
            settings.set += 1;
        }
    }
    let network = right(sources.network(), settings);
    let tunnel = right(sources.tunnel(), settings);
    let proxies = right(sources.proxies(), settings);
    let tls = right(sources.ca(), settings).and_then(|ca| {
        let tls = Tls::new(ca.as_deref());
        right(tls.map_err(|error| format!("--ca (or CONSENSUS_CA_FILE): {error}")), settings)
    });
    right(sources.serving(), settings);
    right(sources.release(), settings);
    let warnings = network.iter().flat_map(|network| network.warnings.clone());
    let warnings = warnings.chain(tunnel.iter().flat_map(|tunnel| tunnel.warnings.clone()));
    let warnings = warnings.chain(proxies.iter().flat_map(proxy_warnings));
    for warning in warnings {
        if !settings.warnings.contains(&warning) {
            settings.warnings.push(warning);
        }
    }
    settings.server = network.as_ref().map(|network| authority(network.server.base()));
    Known {
        dir,
        network,
        tunnel,
        proxies,
        tls,
        listen: right(sources.listen(), settings),
        install_dir: right(sources.updating(), settings).map(|updating| updating.install_dir),
        registry: right(sources.machine_registry(), settings),
    }
}

/// All findings, and what the local API said of the node.
fn find<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    known: &Known,
    settings: Settings,
) -> (Findings, Option<Value>) {
    let supervision = local::Asked::new(sources);
    let state = known.dir.as_deref().map(StateDir::at);
    let mut files = state.as_ref().map(|state| local::files(state, known));
    let registered = match state.as_ref().map(StateDir::registration) {
        None | Some(Err(_)) => Registered::Unknown,
        Some(Ok(None)) => Registered::No,
        Some(Ok(Some(registration))) => Registered::As(registration.node_id),
    };
    if let Some(files) = &mut files {
        files.conflict = local::conflict(known, &registered);
    }
    let (identity, seed) = local::identity(state.as_ref());
    let running = running(sources, state.as_ref());
    let (api, health) = api(runtime, known);
    let lock = state.as_ref().map_or(Lock::Unknown, StateDir::held);
    let node = Running { lock, api, listen: known.listen.map_or_else(String::new, |at| at.to_string()) };
    let left = leave_alone(&node, &registered);

    let time = Time(Instant::now() + WHOLE);
    let route = match (&known.tunnel, &known.proxies, &known.tls) {
        (Some(tunnel), Some(proxies), Some(tls)) => {
            let shake = match (left, seed) {
                (Some(left), _) => Err(left),
                (None, None) => Err(Left::NoKey),
                (None, Some(seed)) => Ok(route::Hand {
                    seed,
                    node_id: match &registered {
                        Registered::As(node) => Some(node.clone()),
                        Registered::Unknown | Registered::No => None,
                    },
                    version: running.as_ref().map_or_else(
                        |_| env!("CARGO_PKG_VERSION").to_string(),
                        |running| running.version.clone(),
                    ),
                }),
            };
            Some(route::go(tunnel, proxies, tls, time, shake))
        }
        _ => None,
    };
    let mut answers = Answers::default();
    if let Some(route) = &route {
        answers = ask(runtime, sources, known, route, &registered, time);
    }
    let findings = Findings {
        program: R::PROGRAM.to_string(),
        unix_seconds: system::now().unix_seconds(),
        settings,
        files,
        identity,
        registered,
        route,
        answers,
        running,
        disk: local::disk(known),
        memory: system::memory().map(|memory| doctor::Memory { total: memory.total, free: memory.free }),
        node,
        supervision: supervision.answer(),
    };
    (findings, health)
}

/// Why a running node is not to be disturbed by a handshake, if it is not. The local API counts where it is this node's.
fn leave_alone(node: &Running, registered: &Registered) -> Option<Left> {
    let is_own = |other: &Option<String>| match (other, registered) {
        (Some(other), Registered::As(own)) => other == own,
        _ => true,
    };
    match (&node.api, &node.lock) {
        (Api::Node { node_id, tunnel }, _) if is_own(node_id) && tunnel == "connected" => {
            Some(Left::Connected)
        }
        (Api::Node { node_id, tunnel }, _) if is_own(node_id) && tunnel != "none" => None,
        (_, Lock::Held(_)) => Some(Left::Unsure),
        _ => None,
    }
}

fn running(sources: &Sources<'_>, state: Option<&StateDir>) -> Result<Manifest, Check> {
    if sources.release().is_err() {
        return Err(Check::Settings);
    }
    version::manifest(sources, state.ok_or(Check::Settings)?).map_err(|_| Check::Files)
}

fn environment(known: &Known, proxies: Proxies) -> Environment {
    Environment {
        state_dir: StateDir::at(known.dir.as_deref().unwrap_or(std::path::Path::new("/"))),
        tls: known.tls.clone().unwrap_or_default(),
        proxies: Arc::new(proxies),
        listen: None,
        // It has nothing to say beside its lines.
        log: Log::stderr(Some(Format::Text), Level::Error),
        updates: None,
    }
}

fn bound(fetch: &mut Fetch, time: Duration) {
    for bound in [&mut fetch.bounds.connect, &mut fetch.bounds.first_byte, &mut fetch.bounds.whole] {
        *bound = time.min(*bound);
    }
}

/// What answers where the local API is to be, and what it says of the node.
fn api<R: Runtime>(runtime: &R, known: &Known) -> (Api, Option<Value>) {
    let Some(mut listen) = known.listen else { return (Api::Unknown, None) };
    if listen.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        listen.set_ip(loopback);
    }
    let Ok(mut fetch) = operator_request(&format!("http://{listen}"), "GET", "/health", None) else {
        return (Api::Unknown, None);
    };
    bound(&mut fetch, LOCAL);
    let response = match runtime.fetch(&environment(known, Proxies::default()), &fetch) {
        Ok(response) => response,
        Err(error) if matches!(error.kind, FetchErrorKind::Connect | FetchErrorKind::Timeout) => {
            return (Api::Silent, None);
        }
        Err(_) => return (Api::Other, None),
    };
    let health: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let Some(tunnel) = health["tunnel"].as_str().filter(|_| response.status == 200) else {
        return (Api::Other, None);
    };
    let node =
        Api::Node { node_id: health["node_id"].as_str().map(str::to_string), tunnel: tunnel.to_string() };
    (node, Some(health))
}

/// What the server's HTTP interface answers, where the way to it is not known to be barred.
fn ask<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    known: &Known,
    route: &doctor::Route,
    registered: &Registered,
    time: Time,
) -> Answers {
    let mut answers = Answers::default();
    let (Some(network), Some(proxies)) = (&known.network, &known.proxies) else { return answers };
    let is_barred = matches!(route.resolved, Some(Err(_)))
        || matches!(route.connected, Some(Err(_)))
        || matches!(route.secured, Some(Err(_)));
    // Where the tunnel is elsewhere, the way there says nothing of the server.
    if is_barred && authority(network.server.base()) == route.target {
        return answers;
    }
    let environment = environment(known, proxies.clone());
    let get = |path: &str| -> Option<Answer> {
        let mut fetch = operator_request(network.server.base(), "GET", path, None).ok()?;
        bound(&mut fetch, time.step()?);
        let answer = runtime.fetch(&environment, &fetch);
        Some((answer, system::now().unix_seconds()))
    };
    if let Registered::As(node) = registered {
        answers.status = get(&format!("/node/status/{node}"));
    }
    if matches!(&answers.status, Some((Err(_), _))) {
        return answers;
    }
    answers.latest = get("/update/latest");
    if let (Some((Ok(response), _)), Ok(keys)) = (&answers.latest, sources.release_keys()) {
        if let Ok(Some(required)) = latest::read(response) {
            let checked = keys.check(&Provider::default(), &required, system::now());
            answers.unsigned = checked.err().map(|error| error.to_string());
        }
    }
    answers
}

/// Whether a handshake was accepted, for the bundle.
fn was_accepted(findings: &Findings) -> bool {
    let shaken = findings.route.as_ref().and_then(|route| route.shaken.as_ref());
    matches!(shaken, Some(Shaken::Done(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_or_may_be_connected_is_left_alone() {
        let own = Registered::As("a".to_string());
        let left = |node_id: &str, tunnel: &str, lock: Lock| {
            let api = Api::Node { node_id: Some(node_id.to_string()), tunnel: tunnel.to_string() };
            leave_alone(&Running { lock, api, listen: String::new() }, &own)
        };
        assert_eq!(left("a", "connected", Lock::Held(None)), Some(Left::Connected));
        assert_eq!(left("a", "connected", Lock::Free), Some(Left::Connected));
        assert_eq!(left("a", "connecting", Lock::Held(None)), None);
        assert_eq!(left("a", "none", Lock::Held(Some(1))), Some(Left::Unsure), "`control` beside `start`");
        assert_eq!(left("a", "none", Lock::Free), None);
        assert_eq!(left("b", "connecting", Lock::Held(None)), Some(Left::Unsure), "another node's API");
        assert_eq!(left("b", "connected", Lock::Free), None);
        let silent =
            |lock: Lock| leave_alone(&Running { lock, api: Api::Silent, listen: String::new() }, &own);
        assert_eq!((silent(Lock::Held(None)), silent(Lock::Free)), (Some(Left::Unsure), None));
    }
}
