//! A listener that serves in a thread of its own until it is dropped.

use std::future::Future;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use smol::{Async, Executor, channel, future};

/// A thread that accepts connections and runs them. Dropping it cuts all of them without a word.
#[derive(Debug)]
pub struct Background {
    stop: Option<channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs `serve` for every connection.
    ///
    /// # Errors
    /// The listener cannot be used, or there is no thread to be had.
    pub fn start<F>(
        name: &str,
        listener: TcpListener,
        serve: impl Fn(Async<TcpStream>) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = Async::new(listener)?;
        let (stop, stopped) = channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let executor = Executor::new();
            let accept = async {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            let _ = stream.get_ref().set_nodelay(true);
                            executor.spawn(serve(stream)).detach();
                        }
                        // Out of file descriptors, or a peer that was gone at once: neither ends the listener.
                        Err(_) => future::yield_now().await,
                    }
                }
            };
            // Dropping the executor drops every connection it runs.
            smol::block_on(executor.run(future::or(accept, async {
                let _ = stopped.recv().await;
            })));
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
