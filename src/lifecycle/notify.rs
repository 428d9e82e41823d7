//! Tells the service manager how the process is doing (systemd's `sd_notify` protocol).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager could not be told.
#[derive(Debug, thiserror::Error)]
#[error("notify socket {socket}: {source}")]
pub struct NotifyError {
    /// Value of `NOTIFY_SOCKET`.
    pub socket: String,
    /// Why not.
    pub source: io::Error,
}

/// Sends `state`, such as `READY=1` or `STOPPING=1`, to the socket that `NOTIFY_SOCKET` names (a path, or `@name` for
/// an abstract one). Without a socket it does nothing.
pub fn notify(socket: Option<&OsStr>, state: &str) -> Result<(), NotifyError> {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
        return Ok(());
    };
    send(socket, state).map_err(|source| NotifyError {
        socket: socket.to_string_lossy().into_owned(),
        source,
    })
}

/// How often `WATCHDOG=1` is to be sent: half of what the service manager waits for (`WATCHDOG_USEC`), if it waits for
/// this process (`WATCHDOG_PID`, or nobody in particular; sd_watchdog_enabled(3)).
pub fn watchdog(usec: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u64>().ok());
    if pid.is_some_and(|pid| number(pid) != Some(std::process::id().into())) {
        return None;
    }
    let usec = number(usec?)?;
    Some(Duration::from_micros(usec / 2)).filter(|pause| !pause.is_zero())
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A full queue of the service manager must not hold up the agent.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bound: &UnixDatagram, socket: &str) {
        notify(Some(OsStr::new(socket)), "READY=1\n").unwrap();
        let mut buffer = [0; 64];
        let length = bound.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\n");
    }

    #[test]
    fn a_path_gets_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        check(&UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
    }

    #[test]
    fn an_abstract_name_gets_the_state() {
        let name = format!("larder-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        check(
            &UnixDatagram::bind_addr(&address).unwrap(),
            &format!("@{name}"),
        );
    }

    #[test]
    fn the_watchdog_is_fed_in_time_where_there_is_one() {
        let asked =
            |usec: &str, pid: Option<&str>| watchdog(Some(OsStr::new(usec)), pid.map(OsStr::new));
        let (me, other) = (std::process::id(), std::process::id() + 1);
        let minute = Some(Duration::from_secs(60));
        assert_eq!(asked("120000000", None), minute);
        assert_eq!(asked("120000000", Some(&me.to_string())), minute);
        assert_eq!(asked("120000000", Some(&other.to_string())), None);
        for text in ["", "0", "1", "-1", "soon"] {
            assert_eq!(asked(text, None), None, "{text}");
        }
        assert_eq!(watchdog(None, None), None);
    }

    #[test]
    fn no_socket_is_no_error_and_a_wrong_one_is_named() {
        notify(None, "READY=1").unwrap();
        notify(Some(OsStr::new("")), "READY=1").unwrap();
        let error = notify(Some(OsStr::new("/nonexistent/notify")), "READY=1").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("notify socket /nonexistent/notify: "),
            "{error}"
        );
    }
}
