//! The runtime on real sockets, against servers that are as simple, or as bad, as each case needs.

use consensus_core::io::{Input, LinkId, Output};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::testing::{Rig, server, tls_pair};

#[test]
fn over_tls_a_burst_is_read_whole_and_the_end_is_clean() {
    const COUNT: usize = 300;
    let (config, tls) = tls_pair();
    let (address, thread) = server(move |stream| {
        let connection = rustls::ServerConnection::new(config).unwrap();
        let mut socket = tungstenite::accept(rustls::StreamOwned::new(connection, stream)).unwrap();
        for number in 0..COUNT {
            socket.write(Message::Binary(vec![number as u8; 3].into())).unwrap();
        }
        socket.flush().unwrap();
        let echoed = socket.read().unwrap();
        let closed = socket.read().unwrap();
        let _ = socket.flush();
        // The connection ends here without a close_notify, as it does with many servers.
        (echoed, closed)
    });
    let rig = Rig::with_tls(tls);
    let link = LinkId(7);
    rig.wants(Output::OpenLink { link, url: format!("wss://{address}/node/tunnel") });
    assert_eq!(rig.next(), Input::LinkOpened { link });
    // All of the burst may sit decrypted in the TLS machine after one wake-up.
    for number in 0..COUNT {
        assert_eq!(rig.next(), Input::LinkBinary { link, data: vec![number as u8; 3] });
    }
    rig.wants(Output::Send { link, data: b"heard".to_vec() });
    rig.wants(Output::CloseLink { link, code: 1000, reason: "control stopped".to_owned() });
    rig.finish();
    let (echoed, closed) = thread.join().unwrap();
    assert_eq!(echoed, Message::Binary(b"heard"[..].into()));
    let frame = CloseFrame { code: CloseCode::Normal, reason: "control stopped".into() };
    assert_eq!(closed, Message::Close(Some(frame)));
}
