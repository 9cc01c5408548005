//! The demo's fleet: a handful of oil wells with plausible physics, publishing over HTTP like any device would.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The wells that the demo simulates.
pub const WELLS: [&str; 6] = ["WELL-001", "WELL-002", "WELL-003", "WELL-004", "WELL-005", "WELL-006"];

/// Time between two readings of one well.
const PERIOD: Duration = Duration::from_millis(500);
/// Vibration that raises an alert, mm/s.
const VIBRATION_LIMIT: f64 = 4.0;
/// The alert is over once vibration is below this again, so that noise around the limit raises one and not many.
const VIBRATION_CALM: f64 = 3.6;

/// Publishes the fleet's readings to the server at `address` until it goes away.
///
/// # Errors
/// When the server can't be reached, or has closed the connection.
pub fn publish(address: SocketAddr, token: &str, seed: u64) -> io::Result<()> {
    let mut random = Noise(seed | 1);
    let mut fleet: Vec<Well> = WELLS.iter().map(|name| Well::new(name, &mut random)).collect();
    let mut server = Publisher::connect(address, token)?;
    let mut due = Instant::now();
    loop {
        let mut readings = String::new();
        let mut alerts = String::new();
        for well in &mut fleet {
            well.step(PERIOD.as_secs_f64(), &mut random);
            well.write_reading(&mut readings);
            well.write_alert(&mut alerts);
        }
        server.post("/api/v1/telemetry/ingest", &readings)?;
        if !alerts.is_empty() {
            server.post("/api/v1/alerts", &alerts)?;
        }
        due += PERIOD;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// A keep-alive connection that posts lines of JSON.
struct Publisher {
    server: BufReader<TcpStream>,
    address: SocketAddr,
    token: String,
}

impl Publisher {
    fn connect(address: SocketAddr, token: &str) -> io::Result<Self> {
        let server = TcpStream::connect(address)?;
        server.set_nodelay(true)?;
        Ok(Self { server: BufReader::new(server), address, token: token.into() })
    }

    fn post(&mut self, path: &str, lines: &str) -> io::Result<()> {
        let (address, token, length) = (self.address, &self.token, lines.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/x-ndjson\r\nContent-Length: {length}\r\n\r\n{lines}"
        );
        self.server.get_mut().write_all(request.as_bytes())?;
        let mut length = 0;
        let mut line = String::new();
        while self.server.read_line(&mut line)? > 2 {
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            line.clear();
        }
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        io::copy(&mut (&mut self.server).take(length), &mut io::sink())?;
        Ok(())
    }
}

/// An electric submersible pump in its well. Values move towards where physics draws them, with noise.
struct Well {
    name: &'static str,
    /// Drive frequency, Hz, and where the operator wants it.
    frequency: f64,
    set_point: f64,
    /// Pump intake pressure, psi.
    intake_pressure: f64,
    /// What the reservoir gives by itself, psi.
    reservoir: f64,
    /// A, and °C, which follows slowly.
    motor_current: f64,
    motor_temperature: f64,
    /// mm/s; wear makes it creep up until the pump is serviced.
    vibration: f64,
    wear: f64,
    flow_rate: f64,
    flow_variance: f64,
    /// Gas to oil, scf/bbl.
    gas_oil_ratio: f64,
    alarmed: bool,
    alert: Option<f64>,
}

impl Well {
    fn new(name: &'static str, random: &mut Noise) -> Self {
        let set_point = 52.0 + random.unit() * 10.0;
        Self {
            name,
            frequency: set_point,
            set_point,
            intake_pressure: 1900.0 + random.unit() * 300.0,
            reservoir: 2000.0 + random.unit() * 400.0,
            motor_current: 48.0,
            motor_temperature: 80.0,
            vibration: 2.0 + random.unit(),
            wear: random.unit(),
            flow_rate: 1000.0,
            flow_variance: 12.0,
            gas_oil_ratio: 130.0 + random.unit() * 40.0,
            alarmed: false,
            alert: None,
        }
    }

    fn step(&mut self, seconds: f64, random: &mut Noise) {
        if random.unit() < seconds / 90.0 {
            self.set_point = 50.0 + random.unit() * 14.0;
        }
        let toward = |value: &mut f64, target: f64, time: f64, noise: f64, random: &mut Noise| {
            *value +=
                (target - *value) * (seconds / time).min(1.0) + noise * seconds.sqrt() * random.normal();
        };
        let load = self.frequency / 60.0;
        toward(&mut self.frequency, self.set_point, 8.0, 0.02, random);
        toward(&mut self.intake_pressure, self.reservoir - 350.0 * load, 40.0, 3.0, random);
        toward(&mut self.flow_rate, 1050.0 * load - 0.15 * (2000.0 - self.intake_pressure), 6.0, 6.0, random);
        toward(&mut self.motor_current, 50.0 * load * load + 4.0 * self.wear, 3.0, 0.25, random);
        toward(&mut self.motor_temperature, 45.0 + 0.8 * self.motor_current, 60.0, 0.1, random);
        toward(&mut self.gas_oil_ratio, 150.0, 300.0, 0.8, random);
        toward(&mut self.flow_variance, 10.0 + 5.0 * self.wear, 15.0, 0.6, random);
        toward(&mut self.vibration, 2.2 + 1.2 * self.wear, 10.0, 0.12, random);
        self.wear += seconds / 600.0;
        if random.unit() < seconds / 120.0 {
            // Gas comes through the pump: a jolt.
            self.vibration += 1.2 + random.unit();
            self.gas_oil_ratio += 25.0;
        }
        if self.wear > 1.5 {
            self.wear = 0.0;
        }
        self.vibration = self.vibration.max(0.3);
        self.alert = (self.vibration > VIBRATION_LIMIT && !self.alarmed).then_some(self.vibration);
        self.alarmed = self.vibration > if self.alarmed { VIBRATION_CALM } else { VIBRATION_LIMIT };
    }

    fn write_reading(&self, lines: &mut String) {
        let torque = 2.3 * self.motor_current;
        let _ = writeln!(
            lines,
            "{{\"well_id\":\"{}\",\"flow_rate\":{:.1},\"pip\":{:.1},\"motor_current\":{:.2},\"motor_temp\":{:.1},\
             \"vibration\":{:.2},\"vsd_frequency\":{:.1},\"flow_variance\":{:.1},\"torque\":{torque:.1},\"gor\":{:.1}}}",
            self.name,
            self.flow_rate,
            self.intake_pressure,
            self.motor_current,
            self.motor_temperature,
            self.vibration,
            self.frequency,
            self.flow_variance,
            self.gas_oil_ratio,
        );
    }

    fn write_alert(&self, lines: &mut String) {
        if let Some(value) = self.alert {
            let _ = writeln!(
                lines,
                "{{\"well_id\":\"{}\",\"type\":\"high_vibration\",\"severity\":\"critical\",\
                 \"message\":\"Vibration exceeds threshold\",\"value\":{value:.2},\"threshold\":{VIBRATION_LIMIT:.1}}}",
                self.name,
            );
        }
    }
}

/// A small generator of noise (xorshift64*).
struct Noise(u64);

impl Noise {
    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Nearly normal: mean 0, variance 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fleet_stays_plausible_and_now_and_then_raises_an_alert() {
        let mut random = Noise(7);
        let mut well = Well::new("WELL-001", &mut random);
        let (mut alerts, mut lines) = (0, String::new());
        for _ in 0..2 * 3600 * 6 {
            well.step(0.5, &mut random);
            lines.clear();
            well.write_reading(&mut lines);
            let reading = protocol::json::object(lines.trim().as_bytes()).expect("an object");
            assert_eq!(reading.filter_map(Result::ok).count(), 10);
            assert!((0.0..12.0).contains(&well.vibration), "{}", well.vibration);
            assert!((500.0..1600.0).contains(&well.flow_rate), "{}", well.flow_rate);
            assert!((60.0..140.0).contains(&well.motor_temperature), "{}", well.motor_temperature);
            lines.clear();
            well.write_alert(&mut lines);
            alerts += usize::from(!lines.is_empty());
        }
        assert!((5..2000).contains(&alerts), "{alerts} alerts in six hours");
    }
}
