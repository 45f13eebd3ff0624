//! What doctor sees of this machine: files, room, supervisors.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::crypto::identity::Identity as Key;
use consensus_core::crypto::pem;
use consensus_core::data_plane::replay;
use consensus_core::doctor::{Files, Identity, Kept, Registered, SeenFile, Space, Supervision};
use consensus_core::io::StateFile;
use consensus_core::service::{self as plan, Scope, Service, Supervisor};
use consensus_core::setup::{self, MAX_PROGRESS};
use consensus_core::state::{self, MAX_STATE_FILE, MachineConflict};
use rustix::fs::{Access, access, statvfs};
use zeroize::Zeroizing;

use super::Known;
use crate::runtime_api::Provider;
use crate::service;
use crate::settings::{FILE_NAME, Servicing, Sources};
use crate::state_dir::{FileError, MachineRegistry, StateDir, read_file};

/// The files of a state directory.
pub(super) const STATE_FILES: [StateFile; 7] = [
    StateFile::Config,
    StateFile::NodeKey,
    StateFile::NodePub,
    StateFile::JoinAuth,
    StateFile::ReleaseManifest,
    StateFile::SpentTickets,
    StateFile::SetupProgress,
];

/// For all that supervisors are asked.
const ASKING: Duration = Duration::from_secs(5);

type Seed = Zeroizing<[u8; 32]>;

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn files(dir: &StateDir, known: &Known) -> Files {
    let root = dir.root();
    let mut files = Files { dir: shown(root), ..Files::default() };
    let Ok(metadata) = fs::metadata(root) else { return files };
    files.mode = Some(metadata.mode() & 0o7777);
    files.is_writable = access(root, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let of_state = STATE_FILES.into_iter().map(|file| (dir.path(file), file.is_secret()));
    // Whether that one may be read by others depends on what is in it, and is told with the settings.
    for (path, is_secret) in of_state.chain([(root.join(FILE_NAME), false)]) {
        if let Ok(metadata) = fs::metadata(&path) {
            let (mode, size) = (metadata.permissions().mode() & 0o7777, metadata.len());
            files.seen.push(SeenFile { path: shown(&path), mode, size, is_secret });
        }
    }
    let mut judge = |error: Option<FileError>| files.damaged.extend(error.map(|error| error.to_string()));
    judge(dir.registration().err());
    judge(dir.join_auth().err());
    judge(dir.release_manifest().err());
    judge(known.registry.as_deref().and_then(|registry| MachineRegistry::at(registry).load().err()));
    // One that cannot be read, or is larger than any, is as damaged as one that is no JSON.
    let damage = |file, most, of: fn(&[u8]) -> Option<String>| match read_file(&dir.path(file), most) {
        Ok(data) => data.and_then(|data| Some(format!("{}: {}", shown(&dir.path(file)), of(&data)?))),
        Err(error) => Some(error.to_string()),
    };
    if let Some(text) = damage(StateFile::SpentTickets, MAX_STATE_FILE, replay::damage) {
        let fix = "leave spent-tickets.json where it is: the node writes it anew when it is started again, and takes no \
                   ticket that may be spent";
        files.mended.push((text, fix.to_string()));
    }
    if let Some(text) = damage(StateFile::SetupProgress, MAX_PROGRESS, setup::damage) {
        let fix = "the next `setup` sets setup-progress.json aside, and asks for everything again";
        files.mended.push((text, fix.to_string()));
    }
    files
}

/// Why the machine registry does not let this node be, if it does not.
pub(super) fn conflict(known: &Known, registered: &Registered) -> Option<(String, MachineConflict)> {
    let registry = MachineRegistry::at(known.registry.as_deref()?);
    let record = registry.load().ok()??;
    let node = match registered {
        Registered::As(node) => Some(node.as_str()),
        Registered::Unknown | Registered::No => None,
    };
    let dir = known.dir.as_deref()?;
    state::check_machine(&record, &shown(dir), node).err().map(|conflict| (shown(&registry.path()), conflict))
}

/// The key as it is. Unlike a node this narrows no mode and writes no public half.
pub(super) fn identity(dir: Option<&StateDir>) -> (Identity, Option<Seed>) {
    let Some(dir) = dir else { return (Identity::Unknown, None) };
    let unreadable = |why: &dyn ToString| (Identity::Unreadable(why.to_string()), None);
    let path = dir.path(StateFile::NodeKey);
    let data = match read_file(&path, MAX_STATE_FILE) {
        Ok(Some(data)) => data,
        Ok(None) => return (Identity::Missing, None),
        Err(error) => return unreadable(&error),
    };
    let seed = std::str::from_utf8(&data).map_err(|error| error.to_string());
    let seed = seed.and_then(|text| pem::decode_private(text).map_err(|error| error.to_string()));
    let seed = match seed {
        Ok(seed) => seed,
        Err(why) => return unreadable(&format!("{}: {why}", path.display())),
    };
    let key = Key::from_seed(Provider::default(), &seed);
    let path = dir.path(StateFile::NodePub);
    let other = match read_file(&path, MAX_STATE_FILE) {
        Ok(None) => None,
        Ok(Some(data)) => {
            let public = std::str::from_utf8(&data).ok().and_then(|text| pem::decode_public(text).ok());
            (public.as_ref() != Some(key.public_key()))
                .then(|| format!("{}: not the public half of keys/node.key", path.display()))
        }
        Err(error) => Some(error.to_string()),
    };
    (other.map_or(Identity::Whole, Identity::OtherPublic), Some(seed))
}

/// The room where releases and state are, or will be.
pub(super) fn disk(known: &Known) -> Vec<Space> {
    let places = [(&known.install_dir, true), (&known.dir, false)];
    let space = |(path, for_releases): (&Option<PathBuf>, bool)| {
        let path = path.as_deref()?.ancestors().find(|path| path.is_dir())?;
        let found = statvfs(path).ok()?;
        Some(Space { path: shown(path), for_releases, free: found.f_bavail.saturating_mul(found.f_frsize) })
    };
    places.into_iter().filter_map(space).collect()
}

/// Supervisors that are being asked: they may take their time, or never answer.
pub(super) struct Asked {
    until: Instant,
    answer: Result<Receiver<Vec<Kept>>, String>,
}

impl Asked {
    pub(super) fn new(sources: &Sources<'_>) -> Self {
        let (tell, told) = mpsc::sync_channel(1);
        let begin = |servicing: Servicing| {
            let ask = move || drop(tell.try_send(kept(&servicing)));
            thread::Builder::new().spawn(ask).map_err(|error| error.to_string())
        };
        let begun = sources.servicing().map_err(|error| error.to_string()).and_then(begin);
        Self { until: Instant::now() + ASKING, answer: begun.map(|_| told) }
    }

    pub(super) fn answer(self) -> Supervision {
        let told = match self.answer {
            Ok(told) => told,
            Err(why) => return Supervision::Unknown(why),
        };
        match told.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
            Ok(kept) => Supervision::By(kept),
            Err(_) => Supervision::Unknown("the supervisor does not answer in time".to_string()),
        }
    }
}

fn kept(servicing: &Servicing) -> Vec<Kept> {
    let each = |service: Service| {
        let report = service::report(servicing, &service);
        Kept {
            text: service.describe(),
            runs: report.as_ref().map(|report| report.runs),
            state: report.map_or_else(String::new, |report| report.state),
            start: start(&service),
        }
    };
    service::installed(servicing).into_iter().map(each).collect()
}

/// What starts a service.
fn start(service: &Service) -> String {
    match (service.supervisor, service.scope) {
        (Supervisor::Systemd, Scope::User) => format!("systemctl --user start {}", plan::NAME),
        (Supervisor::Systemd, Scope::Machine) => format!("systemctl start {}", plan::NAME),
        (Supervisor::Launchd, Scope::User) => {
            format!("launchctl kickstart gui/{}/{}", service.uid, plan::LABEL)
        }
        (Supervisor::Launchd, Scope::Machine) => format!("launchctl kickstart system/{}", plan::LABEL),
        (Supervisor::Pm2, _) => format!("pm2 restart {}", service.name),
    }
}
