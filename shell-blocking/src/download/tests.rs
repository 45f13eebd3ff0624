//! Downloads over real sockets, from servers that do what servers do.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use consensus_core::limits::MAX_TARBALL;
use consensus_core::release::manifest::Manifest;

use super::*;
use crate::state_dir::tests::Scratch;

/// One connection of a server: what it does when a request has come.
type Step = Box<dyn FnOnce(&mut TcpStream) + Send>;

fn step(act: impl FnOnce(&mut TcpStream) + Send + 'static) -> Step {
    Box::new(act)
}

/// Sends these bytes and closes.
fn says(head: &str, body: &[u8]) -> Step {
    let bytes = [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat();
    step(move |stream| drop(stream.write_all(&bytes)))
}

fn whole(body: &[u8]) -> Step {
    says(&format!("200 OK\r\netag: \"a\"\r\ncontent-length: {}", body.len()), body)
}

fn rest(body: &[u8], from: usize) -> Step {
    let (last, total) = (body.len() - 1, body.len());
    let length = total - from;
    let range = format!("content-range: bytes {from}-{last}/{total}");
    says(&format!("206 Partial Content\r\netag: \"a\"\r\n{range}\r\ncontent-length: {length}"), &body[from..])
}

/// Announces all and sends only so much of it.
fn cut(body: &[u8], at: usize) -> Step {
    says(&format!("200 OK\r\netag: \"a\"\r\ncontent-length: {}", body.len()), &body[..at])
}

/// Waits until the client goes away.
fn hold(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 1]);
}

/// A server that makes one step a connection. Joining it gives the heads of the requests; it fails where a step was not
/// asked for.
struct Server {
    url: String,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Server {
    fn start(steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let mut heads = Vec::new();
            for act in steps {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    assert_eq!(stream.read(&mut byte).unwrap(), 1);
                    head.push(byte[0]);
                }
                act(&mut stream);
                heads.push(String::from_utf8(head).unwrap().to_lowercase());
            }
            heads
        });
        Self { url, thread }
    }

    fn heads(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn body() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

struct World {
    scratch: Scratch,
    request: Download,
}

impl World {
    /// The tarball has these bytes; the server's answers may have others.
    fn new(server: &str, body: &[u8]) -> Self {
        let scratch = Scratch::new();
        let mut manifest = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        manifest.download_url = Some(format!("{server}/releases/a.tgz?b=c"));
        manifest.tarball_sha256 = Some(format!("sha256:{}", hex::encode(&sha256(body))));
        manifest.set_tarball_size(body.len() as u64);
        let request = Download {
            artifact: Artifact::of(&manifest).unwrap(),
            state_dir: StateDir::at(scratch.path()),
            server: Some(Target::parse(server).unwrap()),
            allow_private: false,
            tls: Tls::default(),
            proxies: Arc::default(),
            patience: Patience {
                stall: Duration::from_secs(20),
                pause: Duration::from_millis(1),
                tries: 3,
                ..Patience::default()
            },
        };
        Self { scratch, request }
    }

    fn without_size(mut self) -> Self {
        self.request.artifact.size = None;
        self
    }

    fn run(&self) -> Result<Downloaded, DownloadError> {
        download(&self.request, &mut |_| {}, &Arc::default())
    }

    /// It fails, and says that.
    fn fails(&self, says: &str) -> DownloadError {
        let error = self.run().unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        error
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.scratch.path().join("downloads")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "download.lock");
        names.sort();
        names
    }

    fn part(&self) -> PathBuf {
        self.request.folder().join("consensus-node-1.2.3-linux-x64.tgz.part")
    }

    /// As if an earlier fetch had been stopped there.
    fn leave_part(&self, bytes: &[u8], of: &[u8]) {
        fs::create_dir_all(self.request.folder()).unwrap();
        fs::write(self.part(), bytes).unwrap();
        let note = serde_json::json!({"sha256": hex::encode(&sha256(of)), "etag": "\"a\""});
        fs::write(self.part().with_extension("part.json"), note.to_string()).unwrap();
    }

    /// It is there, whole, alone and for this user only.
    fn expect(&self, body: &[u8]) -> Downloaded {
        let found = self.run().unwrap();
        assert_eq!(fs::read(&found.path).unwrap(), body);
        assert_eq!((found.size, found.sha256), (body.len() as u64, sha256(body)));
        assert_eq!(fs::metadata(&found.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(self.names(), ["consensus-node-1.2.3-linux-x64.tgz"]);
        found
    }
}

#[test]
fn a_tarball_is_fetched_once_and_then_it_is_there() {
    let body = body();
    let server = Server::start(vec![whole(&body)]);
    let world = World::new(&server.url, &body);
    let mut seen = Vec::new();
    download(&world.request, &mut |progress| seen.push(progress), &Arc::default()).unwrap();
    let total = Some(body.len() as u64);
    assert_eq!(seen.first(), Some(&Progress { received: 0, total }));
    assert_eq!(seen.last(), Some(&Progress { received: body.len() as u64, total }));
    assert!(seen.is_sorted_by_key(|progress| progress.received));
    let heads = server.heads();
    assert!(heads[0].starts_with("get /releases/a.tgz?b=c http/1.1\r\n"), "{}", heads[0]);
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    // The server is gone.
    assert_eq!(world.expect(&body).resumed_from, body.len() as u64);
}

#[test]
fn a_cut_connection_goes_on_from_where_it_was_cut() {
    let body = body();
    let server = Server::start(vec![cut(&body, 500_000), rest(&body, 500_000)]);
    World::new(&server.url, &body).expect(&body);
    let heads = server.heads();
    assert!(heads[1].contains("\r\nrange: bytes=500000-\r\n"), "{}", heads[1]);
    assert!(heads[1].contains("\r\nif-range: \"a\"\r\n"), "{}", heads[1]);
}

#[test]
fn what_came_is_kept_for_the_next_fetch() {
    let body = body();
    let refuses = || says("503 Busy\r\ncontent-length: 0", b"");
    let server = Server::start(vec![cut(&body, 500_000), refuses(), refuses(), rest(&body, 500_000)]);
    let world = World::new(&server.url, &body);
    let error = world.fails("HTTP 503");
    assert_eq!(error.outcome(), Outcome::Unreachable);
    assert_eq!(fs::metadata(world.part()).unwrap().len(), 500_000);
    assert_eq!(fs::metadata(world.part()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(world.expect(&body).resumed_from, 500_000);
    server.heads();
}

#[test]
fn a_server_that_stalls_is_left_and_asked_for_the_rest() {
    let body = body();
    let stalls = cut(&body, 500_000);
    let stalls = step(move |stream| {
        stalls(stream);
        hold(stream);
    });
    let server = Server::start(vec![step(hold), stalls, rest(&body, 500_000)]);
    let mut world = World::new(&server.url, &body);
    world.request.patience.stall = Duration::from_millis(200);
    world.expect(&body);
    server.heads();
}

#[test]
fn a_server_that_sends_a_byte_now_and_then_is_left_in_the_end() {
    let body = body();
    let drips = step(|stream: &mut TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1200000\r\n\r\n");
        // Ends when the client has gone.
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let server = Server::start(vec![drips]);
    let mut world = World::new(&server.url, &body);
    world.request.patience.whole = Duration::from_millis(300);
    world.fails("took longer than 0.3 s");
    server.heads();
}

#[test]
fn the_tarball_of_another_release_under_this_ones_name_is_not_taken() {
    let (body, other) = (body(), vec![7; 1_200_000]);
    let server = Server::start(vec![whole(&other)]);
    let world = World::new(&server.url, &body);
    let error = world.fails(&hex::encode(&sha256(&other)));
    assert!(matches!(error, DownloadError::Corrupt { .. }));
    assert_eq!(error.outcome(), Outcome::Refused);
    assert_eq!(world.names(), [""; 0]);
    server.heads();
}

#[test]
fn a_damaged_part_costs_a_second_fetch_and_no_more() {
    let body = body();
    let mut damaged = body[..500_000].to_vec();
    damaged[1000] ^= 1;
    let server = Server::start(vec![rest(&body, 500_000), whole(&body)]);
    let world = World::new(&server.url, &body);
    world.leave_part(&damaged, &body);
    assert_eq!(world.expect(&body).resumed_from, 0);
    assert!(!server.heads()[1].contains("range:"));

    // One that has all its bytes, and is longer than it may be.
    for (part, steps) in
        [(damaged_whole(&body), vec![whole(&body)]), (vec![0; 2_000_000], vec![whole(&body)])]
    {
        let server = Server::start(steps);
        let world = World::new(&server.url, &body);
        world.leave_part(&part, &body);
        world.expect(&body);
        assert!(!server.heads()[0].contains("range:"));
    }
}

fn damaged_whole(body: &[u8]) -> Vec<u8> {
    let mut damaged = body.to_vec();
    damaged[0] ^= 1;
    damaged
}

#[test]
fn a_part_that_is_whole_needs_no_server() {
    let body = body();
    let world = World::new("http://127.0.0.1:1", &body);
    world.leave_part(&body, &body);
    world.expect(&body);
}

#[test]
fn the_part_of_another_tarball_is_not_gone_on_with() {
    let body = body();
    let server = Server::start(vec![whole(&body)]);
    let world = World::new(&server.url, &body);
    world.leave_part(&[9; 500], b"another");
    world.expect(&body);
    assert!(!server.heads()[0].contains("range:"));
}

#[test]
fn a_server_that_knows_no_ranges_or_has_a_new_file_sends_the_whole() {
    let body = body();
    let server = Server::start(vec![whole(&body)]);
    let world = World::new(&server.url, &body);
    world.leave_part(&body[..500], &body);
    assert_eq!(world.expect(&body).resumed_from, 0);
    server.heads();
}

#[test]
fn a_server_that_lies_about_ranges_is_asked_for_the_whole_once() {
    let body = body();
    let total = body.len();
    let lie = |range: &str, length: usize, etag: &str| {
        let head = format!("206 P\r\netag: {etag}\r\n{range}content-length: {length}");
        says(&head, &vec![1; length])
    };
    let lies = || {
        vec![
            lie(&format!("content-range: bytes 0-{}/{total}\r\n", total - 1), total, "\"a\""),
            lie(&format!("content-range: bytes 501-{}/{total}\r\n", total - 1), total - 501, "\"a\""),
            lie(&format!("content-range: bytes 500-{total}/{}\r\n", total + 1), total - 499, "\"a\""),
            lie(&format!("content-range: bytes 500-600/{total}\r\n"), 101, "\"a\""),
            lie(&format!("content-range: bytes 500-{}/{total}\r\n", total - 1), total - 500, "\"b\""),
            lie(&format!("content-range: bytes 500-{}/{total}\r\n", total - 1), 7, "\"a\""),
            lie("content-range: bytes 500-\r\n", 7, "\"a\""),
            lie("", 7, "\"a\""),
            says(&format!("416 No\r\ncontent-range: bytes */{total}\r\ncontent-length: 0"), b""),
        ]
    };
    for lie in lies() {
        let server = Server::start(vec![lie, whole(&body)]);
        let world = World::new(&server.url, &body);
        world.leave_part(&body[..500], &body);
        world.expect(&body);
        assert!(!server.heads()[1].contains("range:"));
    }
    // Once: the second time it is over.
    let mut lies = lies();
    let server = Server::start(vec![lies.remove(0), cut(&body, 500), lies.remove(0)]);
    let world = World::new(&server.url, &body);
    world.leave_part(&body[..500], &body);
    world.fails("another part than was asked for");
    assert_eq!(world.names(), [""; 0]);
    server.heads();
    let server = Server::start(vec![rest(&body, 0)]);
    World::new(&server.url, &body).fails("a part that nobody asked for");
    server.heads();
}

#[test]
fn a_server_that_lies_about_lengths_or_never_ends_is_refused() {
    let body = body();
    let announces = |length: u64| says(&format!("200 OK\r\ncontent-length: {length}"), b"x");
    for (act, text) in [
        (announces(1_200_001), "has 1200001 bytes, the manifest says 1200000"),
        (announces(1_199_999), "has 1199999 bytes, the manifest says 1200000"),
        (endless("200 OK\r\ntransfer-encoding: chunked", b"1000\r\n", b"\r\n"), "more than 1200000 bytes"),
        (endless("200 OK", b"", b""), "more than 1200000 bytes"),
        (endless("200 OK\r\nx: ", b"", b""), "head is too large"),
        (whole_gzip(&body), "another encoding"),
    ] {
        let server = Server::start(vec![act]);
        let world = World::new(&server.url, &body);
        assert_eq!(world.fails(text).outcome(), Outcome::Refused);
        assert_eq!(world.names(), [""; 0]);
        server.heads();
    }
    let server = Server::start(vec![announces(MAX_TARBALL + 1)]);
    World::new(&server.url, &body).without_size().fails("more than 268435456 bytes");
    server.heads();
}

fn whole_gzip(body: &[u8]) -> Step {
    says(&format!("200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}", body.len()), body)
}

/// Sends the same again and again until the client has gone.
fn endless(head: &str, before: &[u8], after: &[u8]) -> Step {
    let head =
        if head.ends_with(' ') { format!("HTTP/1.1 {head}") } else { format!("HTTP/1.1 {head}\r\n\r\n") };
    let piece = [before, &[b'x'; 4096], after].concat();
    step(move |stream| {
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(&piece).is_ok() {}
    })
}

#[test]
fn a_manifest_without_a_size_is_fetched_all_the_same() {
    let body = body();
    let chunked = |from: usize, end: &[u8]| {
        let length = body.len() - from;
        [format!("{length:x}\r\n").as_bytes(), &body[from..], b"\r\n", end].concat()
    };
    let server = Server::start(vec![
        says("200 OK\r\ntransfer-encoding: chunked", &chunked(0, b"")[..500_000]),
        says("200 OK\r\ntransfer-encoding: chunked", &chunked(0, b"0\r\n\r\n")),
    ]);
    World::new(&server.url, &body).without_size().expect(&body);
    server.heads();
}

#[test]
fn an_answer_that_ends_with_its_connection_may_have_been_cut() {
    let body = body();
    let server = Server::start(vec![says("200 OK\r\netag: \"a\"", &body[..1000]), rest(&body, 1000)]);
    World::new(&server.url, &body).expect(&body);
    server.heads();
}

#[test]
fn redirects_are_followed_a_few_times() {
    let body = body();
    let to =
        |location: &str| says(&format!("302 Found\r\nlocation: {location}\r\ncontent-length: 4"), b"here");
    let server =
        Server::start(vec![to("/b"), to("c?d"), cut(&body, 500), to("/b"), to("c"), rest(&body, 500)]);
    World::new(&server.url, &body).expect(&body);
    let heads = server.heads();
    assert!(heads[2].starts_with("get /c?d ") && heads[5].contains("range: bytes=500-"), "{heads:?}");
    let server = Server::start((0..=5).map(|_| to("/")).collect());
    World::new(&server.url, &body).fails("more than 5 redirects");
    server.heads();
    let server = Server::start(vec![says("302 Found\r\ncontent-length: 0", b"")]);
    World::new(&server.url, &body).fails("to nowhere");
    server.heads();
}

#[test]
fn a_url_elsewhere_does_not_reach_private_addresses() {
    let body = body();
    let inner = Server::start(vec![whole(&body)]);
    let mut world = World::new(&inner.url, &body);
    world.request.server = Some(Target::parse("http://127.0.0.1:1").unwrap());
    assert_eq!(world.fails("not on the public internet").outcome(), Outcome::Refused);
    // Neither by a redirect of the network's own server.
    let server =
        Server::start(vec![says(&format!("302 F\r\nlocation: {}/\r\ncontent-length: 0", inner.url), b"")]);
    World::new(&server.url, &body).fails("not on the public internet");
    server.heads();
    // A lab may.
    world.request.allow_private = true;
    world.expect(&body);
    assert_eq!(inner.heads().len(), 1);
}

#[test]
fn a_refusal_is_final_and_a_server_that_is_down_is_asked_again() {
    let body = body();
    let server = Server::start(vec![says("404 Not\x1b[2J Found\r\ncontent-length: 0", b"")]);
    let error = World::new(&server.url, &body).run().unwrap_err().to_string();
    assert!(!error.contains('\x1b'), "{error:?}");
    server.heads();
    let server = Server::start(vec![says("503 Busy\r\ncontent-length: 0", b""), step(|_| {}), whole(&body)]);
    World::new(&server.url, &body).expect(&body);
    server.heads();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(World::new(&url, &body).fails("what came is kept").outcome(), Outcome::Unreachable);
}

#[test]
fn a_fetch_that_is_no_longer_wanted_ends_and_keeps_what_came() {
    let body = body();
    let sends = cut(&body, 500_000);
    let sends = step(move |stream| {
        sends(stream);
        hold(stream);
    });
    let server = Server::start(vec![sends]);
    let world = World::new(&server.url, &body);
    let cancelled = Arc::new(AtomicBool::new(false));
    let mut stop = |progress: Progress| {
        if progress.received == 500_000 {
            cancelled.store(true, Ordering::Relaxed);
        }
    };
    let error = download(&world.request, &mut stop, &cancelled).unwrap_err();
    assert!(matches!(error, DownloadError::Cancelled), "{error}");
    assert_eq!(fs::metadata(world.part()).unwrap().len(), 500_000);
    server.heads();
}

#[test]
fn one_fetch_at_a_time_runs_on_a_state_directory() {
    let body = body();
    let world = World::new("http://127.0.0.1:1", &body);
    make_dir(&world.request.folder()).unwrap();
    let held = lock(&world.request.folder()).unwrap();
    assert!(matches!(world.fails("another process"), DownloadError::Busy(_)));
    drop(held);
    world.leave_part(&body, &body);
    world.expect(&body);
}

#[test]
fn links_and_pipes_in_the_way_are_not_followed() {
    let body = body();
    let world = World::new("http://127.0.0.1:1", &body);
    fs::create_dir_all(world.request.folder()).unwrap();
    let precious = world.scratch.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for path in [world.part(), world.request.path()] {
        symlink(&precious, &path).unwrap();
        assert!(matches!(world.run(), Err(DownloadError::File(_))), "{}", path.display());
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(matches!(world.run(), Err(DownloadError::File(_))), "{}", path.display());
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn old_tarballs_go_and_other_files_stay() {
    let body = body();
    let world = World::new("http://127.0.0.1:1", &body);
    world.leave_part(&body, &body);
    for old in 0..5 {
        fs::write(world.request.folder().join(format!("consensus-node-0.0.{old}-linux-x64.tgz")), "old")
            .unwrap();
    }
    fs::write(world.request.folder().join("notes.tgz"), "mine").unwrap();
    world.run().unwrap();
    let names = world.names();
    assert_eq!(names.len(), KEPT + 1, "{names:?}");
    assert!(names.contains(&"notes.tgz".to_string()) && world.request.path().exists());
}

#[test]
fn what_is_left_of_fetches_that_fail_is_bounded() {
    let body = body();
    let server = Server::start((0..6).map(|_| cut(&body, 100_000)).collect());
    let mut world = World::new(&server.url, &body);
    world.request.patience.tries = 1;
    for patch in 0..6 {
        world.request.artifact.file_name = format!("consensus-node-9.0.{patch}-linux-x64.tgz");
        world.fails("so try again");
    }
    server.heads();
    let names = world.names();
    let parts = names.iter().filter(|name| name.ends_with(".part")).count();
    assert!(parts <= KEPT && names.len() <= KEPT + 1, "{names:?}");
    assert!(names.contains(&"consensus-node-9.0.5-linux-x64.tgz.part".to_string()), "{names:?}");
}

#[test]
fn a_disk_that_is_full_is_not_left_full() {
    // Files of this test's process end at 64 blocks: so it has a process of its own.
    const OF_ITS_OWN: &str = "CONSENSUS_TEST_SMALL_FILES";
    if std::env::var_os(OF_ITS_OWN).is_none() {
        let line = "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact download::tests::a_disk_that_is_full_is_not_left_full";
        let program = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new("sh");
        // What it says goes through a pipe, which has no length: it may be a long file otherwise.
        let output = command.args(["-c", line]).arg(program).env(OF_ITS_OWN, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let body = body();
    let server = Server::start(vec![cut(&body, 20_000), rest(&body, 20_000)]);
    let world = World::new(&server.url, &body);
    assert!(matches!(world.fails("cannot be written"), DownloadError::File(_)));
    server.heads();
    assert!(world.names().is_empty(), "{:?}", world.names());
}
