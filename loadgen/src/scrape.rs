//! What a server says of itself at `/metrics`, in the Prometheus exposition format.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::response::{self, MAX_BODY_BYTES};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The value of the counter `name`, all its labels together; `None` if the server has no such page or counter.
pub fn counter(address: SocketAddr, host: &str, name: &str) -> Option<u64> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(MAX_BODY_BYTES as u64).read_to_end(&mut answer).ok()?;
    let head = response::head(&answer).ok()??;
    let text = std::str::from_utf8(&answer[head.bytes..]).ok()?;
    (head.status == 200).then(|| sum(text, name))?
}

fn sum(text: &str, name: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest,
        };
        let value: f64 = value.strip_prefix(' ')?.split(' ').next()?.trim().parse().ok()?;
        Some(value as u64)
    });
    values.reduce(|sum, value| sum.saturating_add(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total 5\nb_total{shard=\"0\"} 1\n\
                    b_total{shard=\"} 9\"} 2e3\na_total_more 7\nc_total x\n";
        for (name, value) in
            [("a_total", Some(5)), ("b_total", Some(2001)), ("c_total", None), ("a", None), ("d_total", None)]
        {
            assert_eq!(sum(text, name), value, "{name}");
        }
    }
}
