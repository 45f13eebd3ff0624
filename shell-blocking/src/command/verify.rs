//! `verify`: whether the network accepts the release that runs.

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::io::{Finish, Outcome};
use consensus_core::release::integrity;
use consensus_core::release::verify::{Output, Verifying};

use super::{Failure, Setup, version};
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::settings::Sources;
use crate::system;

pub(super) fn run<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    let network = sources.network()?;
    let state_dir = setup.state_dir();
    let manifest = version::manifest(sources, &state_dir)?;
    let Some(registration) = state_dir.registration()? else {
        let message = format!(
            "{}: this node is not registered; run `{program} eval`, then `{program} register`",
            setup.common.state_dir.display(),
            program = R::PROGRAM
        );
        return Err(Failure::new(Outcome::NotRegistered, message));
    };
    let identity = setup.identity(&state_dir, Some(&registration))?;
    let environment = setup.environment(&state_dir)?;
    setup.warn(&network.warnings);
    let mut rng = Drbg::new(system::seed().map_err(Failure::internal)?);
    let identity = Identity::from_seed(Provider::default(), &identity.seed);
    let payload = integrity::build(&identity, &manifest, system::now(), &mut rng);
    let machine = Verifying::new(network.server.base(), &registration.node_id, payload);
    Ok(setup.finish(&drive(runtime, setup, &environment, machine)))
}

fn drive<R: Runtime>(
    runtime: &R,
    setup: &Setup,
    environment: &Environment,
    mut machine: Verifying,
) -> Finish {
    loop {
        match machine.poll_output() {
            Output::Fetch(fetch) => machine.handle_input(runtime.fetch(environment, &fetch)),
            Output::Notice(notice) => setup.notice("verify", &notice),
            Output::Finish(finish) => return finish,
            Output::Wait => {
                let message =
                    "the verification stopped half way; this is a defect of the program".to_string();
                return Finish { outcome: Outcome::Internal, message };
            }
        }
    }
}
