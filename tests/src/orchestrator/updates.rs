//! Updates that the network directs: what a node is told, and the artifacts that it fetches (protocol.md section 9).

use std::sync::Arc;

use consensus_core::crypto::Crypto as _;
use consensus_core::crypto::pure::Pure;
use consensus_core::peer::orchestrator::Input;
use consensus_core::release::manifest::Manifest;
use consensus_core::wire::frame::FrameBuf;
use consensus_core::wire::hex;
use consensus_core::wire::message::{UpdateApply, UpdatePrepare};
use serde_json::{Value, json};

use super::http::{Reply, failure};
use super::tunnel::Command;
use super::{Orchestrator, Shared};

/// Where artifacts are served.
pub(super) const FOLDER: &str = "/artifacts/";

impl Orchestrator {
    /// Serves these bytes at `/artifacts/NAME`; gives the URL.
    pub fn publish(&self, name: &str, bytes: Vec<u8>) -> String {
        self.shared.state().artifacts.insert(name.to_owned(), Arc::new(bytes));
        format!("{}{FOLDER}{name}", self.url())
    }

    /// Serves a release, and completes its manifest with what is known only then.
    #[must_use]
    pub fn publish_release(&self, mut manifest: Manifest, tarball: Vec<u8>) -> Manifest {
        let name = format!("consensus-node-{}-{}.tgz", manifest.version, manifest.platform);
        manifest.tarball_sha256 = Some(format!("sha256:{}", hex::encode(&Pure.sha256(&[&tarball]))));
        manifest.set_tarball_size(u64::try_from(tarball.len()).unwrap_or(u64::MAX));
        manifest.download_url = Some(self.publish(&name, tarball));
        manifest
    }

    /// Has the network require a release of its nodes.
    pub fn require(&self, manifest: Manifest) {
        self.shared.state().required = Some(manifest);
    }

    /// Has a node prepare a release. Gives the request's `id`, which the answer repeats; `None` when the node has no
    /// control session.
    pub fn prepare_update(&self, node_id: &str, update_id: &str, manifest: Manifest) -> Option<String> {
        self.shared.prepare_update(node_id, update_id, manifest)
    }

    /// Has a node install what it prepared. Gives the request's `id`.
    pub fn apply_update(&self, node_id: &str, update_id: &str, restart_after_ms: u64) -> Option<String> {
        self.shared.apply_update(node_id, update_id, restart_after_ms)
    }
}

impl Shared {
    fn prepare_update(&self, node_id: &str, update_id: &str, manifest: Manifest) -> Option<String> {
        let id = self.random_hex::<16>();
        let manifest = Box::new(manifest);
        let prepare = UpdatePrepare { id: id.clone(), update_id: update_id.to_owned(), manifest };
        self.say(node_id, prepare.encode(self.now().unix_seconds())).then_some(id)
    }

    fn apply_update(&self, node_id: &str, update_id: &str, restart_after_ms: u64) -> Option<String> {
        let id = self.random_hex::<16>();
        let apply = UpdateApply { id: id.clone(), update_id: update_id.to_owned(), restart_after_ms };
        self.say(node_id, apply.encode(self.now().unix_seconds())).then_some(id)
    }

    fn say(&self, node_id: &str, plaintext: FrameBuf) -> bool {
        let state = self.state();
        let Some(attached) = state.attached.get(node_id) else { return false };
        attached.commands.try_send(Command::Input(Input::Send(plaintext))).is_ok()
    }
}

/// `POST /admin/update/prepare/NODE {update_id, manifest}`, or without a manifest the required one;
/// `POST /admin/update/apply/NODE {update_id, restart_after_ms?}`. What the node answers is in the journal.
pub(super) fn direct(shared: &Shared, step: &str, node_id: &str, body: &Value, admin: Option<&str>) -> Reply {
    if admin != Some(shared.options.admin_key.as_str()) {
        return failure(401, "unauthorized", "x-admin-key is not right");
    }
    let Some(update_id) = body["update_id"].as_str().filter(|id| !id.is_empty()) else {
        return failure(400, "invalid_request", "update_id is missing");
    };
    let id = match step {
        "prepare" => {
            let manifest = if body["manifest"].is_null() {
                shared.state().required.clone()
            } else {
                serde_json::from_value(body["manifest"].clone()).ok()
            };
            let Some(manifest) = manifest else {
                return failure(400, "invalid_manifest", "there is no manifest, and no release is required");
            };
            shared.prepare_update(node_id, update_id, manifest)
        }
        "apply" => shared.apply_update(node_id, update_id, body["restart_after_ms"].as_u64().unwrap_or(0)),
        _ => return failure(404, "not_found", "no such path"),
    };
    match id {
        Some(id) => (200, json!({ "success": true, "id": id, "update_id": update_id })),
        None => failure(502, "node_offline", "the node has no control tunnel"),
    }
}
