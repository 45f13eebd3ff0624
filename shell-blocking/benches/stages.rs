//! The stages of a request on the data plane, and what goes through the tunnel, with the cryptography of a released
//! node: `cargo bench -p shell-blocking --bench stages`.

mod paths;

use divan::Bencher;
use paths::{NAMES, Name};
use shell_blocking::fast::Fast;

fn main() {
    divan::main();
}

/// All but the one that needs keys that do not differ.
fn names() -> impl Iterator<Item = Name> {
    NAMES.into_iter().filter(|name| name.path != "data-plane request")
}

#[divan::bench(args = names())]
fn path(bencher: Bencher<'_, '_>, name: Name) {
    let path = name.find::<Fast>();
    bencher.with_inputs(path).bench_local_values(|work| work());
}
