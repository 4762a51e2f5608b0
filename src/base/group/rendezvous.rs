//! How processes without MPI find each other: the first one gives some bytes to the others over TCP.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What the others say first, so that whoever else calls is not taken for one of them.
const HELLO: &[u8; 16] = b"datum rendezvous";
/// How long a process waits for the first one.
const PATIENCE: Duration = Duration::from_secs(300);

/// The address the first process listens at: `MASTER_ADDR` and `MASTER_PORT`, as torchrun sets them; in SLURM by default the
/// machine that started the step.
pub fn address(variable: impl Fn(&str) -> Option<String>) -> (String, u16) {
    let host = variable("MASTER_ADDR").or_else(|| variable("SLURM_LAUNCH_NODE_IPADDR"));
    let port = variable("MASTER_PORT").and_then(|port| port.parse().ok());
    (host.unwrap_or_else(|| "127.0.0.1".into()), port.unwrap_or(29_500))
}

/// Gives `bytes` to `others` processes.
pub fn give(listener: &TcpListener, others: usize, bytes: &[u8]) -> Result<()> {
    let mut served = 0;
    while served < others {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut hello = [0; HELLO.len()];
        if stream.read_exact(&mut hello).is_ok() && hello == *HELLO {
            stream.write_all(bytes)?;
            served += 1;
        }
    }
    Ok(())
}

/// Takes `N` bytes from the process at `address`, which may not listen yet.
pub fn take<const N: usize>(address: &(String, u16)) -> Result<[u8; N]> {
    let start = Instant::now();
    loop {
        match TcpStream::connect((address.0.as_str(), address.1)) {
            Ok(mut stream) => {
                let mut bytes = [0; N];
                stream.write_all(HELLO)?;
                stream.read_exact(&mut bytes)?;
                return Ok(bytes);
            }
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(Error::new(ErrorKind::TimedOut, format!("nobody listens at {}:{}: {error}", address.0, address.1)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_serves_the_others_and_nobody_else() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = ("127.0.0.1".to_string(), listener.local_addr().unwrap().port());
        let bytes: [u8; 128] = std::array::from_fn(|i| i as u8);
        std::thread::scope(|scope| {
            TcpStream::connect(listener.local_addr().unwrap()).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| take::<128>(&address).unwrap())).collect();
            give(&listener, 3, &bytes).unwrap();
            assert!(others.into_iter().all(|other| other.join().unwrap() == bytes));
        });
    }

    #[test]
    fn addresses_come_from_the_launcher() {
        let torchrun = |name: &str| match name {
            "MASTER_ADDR" => Some("node7".to_string()),
            "MASTER_PORT" => Some("4000".to_string()),
            _ => None,
        };
        assert_eq!(address(torchrun), ("node7".into(), 4000));
        let slurm = |name: &str| (name == "SLURM_LAUNCH_NODE_IPADDR").then(|| "10.0.0.3".to_string());
        assert_eq!(address(slurm), ("10.0.0.3".into(), 29_500));
    }
}
