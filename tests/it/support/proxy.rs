//! A proxy within the process: takes every name for the one registry it knows, and writes down what it was asked.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Stops with the runtime of its test.
pub(crate) struct Proxy {
    /// `127.0.0.1:port`.
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Leads all to `target`, for those who show `authorization` (a whole header value; empty for everyone).
    pub(crate) async fn start(target: &str, authorization: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (target, authorization) = (target.to_owned(), authorization.to_owned());
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, authorization) = (target.clone(), authorization.clone());
                // A client that hangs up is no reason to stop.
                tokio::spawn(serve(client, target, authorization, Arc::clone(&log)));
            }
        });
        Proxy { host, asked }
    }

    /// `METHOD target` of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut client: TcpStream,
    target: String,
    authorization: String,
    log: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ');
    let (method, asked) = (words.next().unwrap(), words.next().unwrap());
    log.lock().unwrap().push(format!("{method} {asked}"));
    let shown = lines
        .clone()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))
        .map_or("", |(_, value)| value);
    if shown != authorization {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal.as_bytes()).await;
    }
    let mut server = TcpStream::connect(target).await?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        // One request a connection, so that each has its line above.
        let path = asked.splitn(4, '/').nth(3).unwrap_or_default();
        let mut forwarded = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n");
        for line in lines.filter(|line| !line.is_empty()) {
            forwarded += &format!("{line}\r\n");
        }
        server
            .write_all(format!("{forwarded}\r\n").as_bytes())
            .await?;
    }
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
