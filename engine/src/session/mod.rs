//! One client: bytes in, effects out.
//!
//! A session knows HTTP, the listener's dialects and whom its token names. It does no I/O and no routing: what it
//! can't answer by itself it returns as an [`Effect`], and the shard comes back with [`Session::answer`]. One request is
//! in progress at a time; what a client pipelines waits in the input.

use std::borrow::Cow;

use protocol::dialect::{self, DialectId, DialectSet, Found};
use protocol::http::{self, BodyDecoder, Framing, Head, HeadScan, HttpError, Method};
use protocol::message::{Access, Batch, Command, Password, Refusal, Reply, Request, Verb};

use crate::auth::{Keys, Principal};
use crate::metrics::{Counter, Metrics};
use crate::ring::Now;

mod asked;

use asked::{Asked, http_date, plain};

/// What all sessions of a server share.
pub struct Site {
    /// Sizes of requests.
    pub limits: http::Limits,
    /// Verifies and issues tokens.
    pub keys: Keys,
    /// How long an issued token is valid, seconds.
    pub token_ttl: u64,
    /// What each listener offers, by its number.
    pub listeners: Vec<Offer>,
    /// How each dialect behaves, in the order of the table of dialects.
    pub manners: Vec<Manners>,
}

/// What the configuration says of one dialect.
pub struct Manners {
    /// Name of the platform in the texts.
    pub platform: String,
    /// How long a stream may be silent, ms.
    pub heartbeat: u64,
}

impl Site {
    /// How a dialect behaves.
    pub fn manners(&self, dialect: DialectId) -> &Manners {
        &self.manners[dialect as usize]
    }
}

/// What one listener offers.
pub struct Offer {
    /// Its dialects.
    pub dialects: DialectSet,
    /// Whether it serves metrics to everybody who can connect. Where one does, the others don't serve them.
    pub admin: bool,
    /// Origins other than its own whose pages may use each dialect.
    pub origins: Vec<(DialectId, Vec<String>)>,
}

/// What a session is told with every call.
pub struct Context<'a> {
    /// The clocks.
    pub now: Now,
    /// What all share.
    pub site: &'a Site,
    /// The shard's counters.
    pub metrics: &'a Metrics,
    /// Whether the server is ending: no connection is kept for another request.
    pub draining: bool,
}

/// What the shard is to do.
#[derive(Debug)]
pub enum Effect {
    /// Nothing but to send what was written.
    None,
    /// Close once what was written is sent.
    Close,
    /// As `Close`, but the client may still be sending what nobody will read: it gets time to read the refusal
    /// (RFC 9112 section 9.6).
    Refuse,
    /// Answer with a page of the server itself.
    Page(Page),
    /// Check a password.
    Login {
        /// Name.
        username: String,
        /// Password.
        password: Password,
    },
    /// Publish.
    Publish(Batch),
    /// Read something back: `Topics`, `History` or `Latest`.
    Read(Command),
    /// Turn the connection into a stream.
    Stream(StreamRequest),
}

/// A stream to open.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// Who spells its events.
    pub dialect: DialectId,
    /// Of what.
    pub topic: String,
    /// Whether the newest telemetry comes first.
    pub snapshot: bool,
    /// Resume after this offset.
    pub after: Option<u64>,
    /// When the token ends, seconds since the epoch.
    pub expires: u64,
}

/// Pages that belong to no dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/`
    Index,
    /// `/metrics`
    Metrics,
    /// `/healthz`, `/livez`: every shard's loop turns.
    Healthz,
    /// `/readyz`: new clients are welcome.
    Readyz,
    /// `/health`: a small JSON.
    Health,
    /// `/version`
    Version,
}

const PAGES: [(&str, Page); 7] = [
    ("/", Page::Index),
    ("/metrics", Page::Metrics),
    ("/healthz", Page::Healthz),
    ("/livez", Page::Healthz),
    ("/readyz", Page::Readyz),
    ("/health", Page::Health),
    ("/version", Page::Version),
];

/// What a session is in the middle of, so that the shard knows which deadline holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing has come of the next request.
    Idle,
    /// A request is arriving; since when, in ms on the monotonic clock.
    Arriving(u64),
    /// The shard owes an answer.
    Waiting,
    /// The connection carries a stream.
    Streaming,
}

/// One client.
pub struct Session {
    /// Bytes of a request that is not whole; no memory while there are none.
    input: Vec<u8>,
    phase: Phase,
    /// When the first byte of the request in progress came, in ms; 0: none has.
    began: u64,
    listener: u16,
    /// Whether the peer is this machine.
    local: bool,
}

enum Phase {
    Head(Box<HeadScan>),
    /// No byte of a head yet: most connections, most of the time.
    Fresh,
    Body(Box<Arriving>),
    Waiting(Box<Asked>),
    Streaming,
    Closing,
}

struct Arriving {
    head: Vec<u8>,
    body: Vec<u8>,
    decoder: BodyDecoder,
}

/// Where a request leads, once admitted.
enum Route<'a> {
    Page(Page),
    Options(Cow<'static, str>),
    Door { verb: Verb, param: Cow<'a, str> },
}

impl Session {
    /// A client that has just connected to listener number `listener`; `local`: from this machine.
    pub fn new(listener: u16, local: bool) -> Self {
        Self { input: Vec::new(), phase: Phase::Fresh, began: 0, listener, local }
    }

    /// What it is in the middle of.
    pub fn activity(&self) -> Activity {
        match self.phase {
            Phase::Waiting(_) => Activity::Waiting,
            Phase::Streaming | Phase::Closing => Activity::Streaming,
            _ if self.began > 0 => Activity::Arriving(self.began),
            _ => Activity::Idle,
        }
    }

    /// Whether it takes input now.
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Fresh | Phase::Head(_) | Phase::Body(_))
    }

    /// Whether the principal of the request in progress may see this topic.
    pub fn may_see(&self, topic: &str) -> bool {
        let Phase::Waiting(asked) = &self.phase else { return false };
        asked.principal.as_ref().is_some_and(|principal| principal.may_see(topic))
    }

    /// Takes bytes as they come, and again (with none) after an answer. Appends what is to be sent to `out`.
    pub fn receive(&mut self, incoming: &[u8], cx: &Context<'_>, out: &mut Vec<u8>) -> Effect {
        let effect;
        if self.input.is_empty() {
            let used;
            (used, effect) = self.consume(incoming, cx, out);
            self.input.extend_from_slice(&incoming[used..]);
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(incoming);
            let used;
            (used, effect) = self.consume(&input, cx, out);
            if used < input.len() {
                input.drain(..used);
                self.input = input;
            }
        }
        effect
    }

    /// The answer to the request in progress. True: the connection goes on, call [`receive`](Self::receive) again.
    pub fn answer(
        &mut self,
        answer: Result<Reply<'_>, &Refusal>,
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let Phase::Waiting(asked) = std::mem::replace(&mut self.phase, Phase::Closing) else {
            return false;
        };
        match answer {
            Ok(reply) => {
                let mut body = Vec::new();
                asked.dialect.reply(&reply, &mut body);
                asked.respond(asked.status, "application/json", &body, &[], cx, out);
            }
            Err(refusal) => asked.refuse(refusal, cx, out),
        }
        self.next_request(asked.keep_alive && !cx.draining)
    }

    /// A page of the server itself, as the answer to the request in progress.
    pub fn answer_page(
        &mut self,
        status: u16,
        content_type: &str,
        body: &[u8],
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let Phase::Waiting(asked) = std::mem::replace(&mut self.phase, Phase::Closing) else {
            return false;
        };
        asked.respond(status, content_type, body, &[], cx, out);
        self.next_request(asked.keep_alive && !cx.draining)
    }

    /// The head of the stream that was asked for: from here on the connection carries frames.
    pub fn begin_stream(&mut self, cx: &Context<'_>, out: &mut Vec<u8>) {
        if let Phase::Waiting(asked) = std::mem::replace(&mut self.phase, Phase::Streaming) {
            let date = http_date(cx.now.wall);
            let fields = asked.origin_fields().chain([("Date", date.as_str())]);
            http::stream_head(fields, out);
        }
    }

    /// The request did not arrive in time.
    pub fn time_out(&mut self, cx: &Context<'_>, out: &mut Vec<u8>) {
        if self.began > 0 && self.is_reading() {
            cx.metrics.count(Counter::Timeouts);
            plain(408, "The request did not arrive in time.\n", cx, out);
        }
        self.phase = Phase::Closing;
    }

    fn next_request(&mut self, keep_alive: bool) -> bool {
        self.began = 0;
        self.phase = if keep_alive { Phase::Fresh } else { Phase::Closing };
        keep_alive
    }

    /// Works through `input`; gives how much of it is used up.
    fn consume(&mut self, input: &[u8], cx: &Context<'_>, out: &mut Vec<u8>) -> (usize, Effect) {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if rest.is_empty() || !self.is_reading() {
                return (used, Effect::None);
            }
            if self.began == 0 {
                self.began = cx.now.millis().max(1);
            }
            match self.step(rest, cx, out) {
                Ok((taken, Some(effect))) => return (used + taken, effect),
                Ok((0, None)) => return (used, Effect::None),
                Ok((taken, None)) => used += taken,
                Err(error) => {
                    cx.metrics.count(Counter::BadRequests);
                    plain(error.status(), error.explain(), cx, out);
                    self.phase = Phase::Closing;
                    return (input.len(), Effect::Refuse);
                }
            }
        }
    }

    /// One step through the input. No bytes used and no effect: more has to come.
    fn step(
        &mut self,
        rest: &[u8],
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Effect>), HttpError> {
        if let Phase::Body(arriving) = &mut self.phase {
            let progress = arriving.decoder.advance(rest, &mut arriving.body)?;
            if !progress.done {
                return Ok((progress.consumed, None));
            }
            let Phase::Body(whole) = std::mem::replace(&mut self.phase, Phase::Fresh) else {
                return Ok((0, None));
            };
            let head = http::parse_head(&whole.head, &mut HeadScan::default(), &cx.site.limits)?;
            let effect = head.and_then(|head| self.dispatch(&head, &whole.body, cx, out));
            return Ok((progress.consumed, effect));
        }
        let mut scan = match &self.phase {
            Phase::Head(scan) => **scan,
            _ => HeadScan::default(),
        };
        let Some(head) = http::parse_head(rest, &mut scan, &cx.site.limits)? else {
            self.phase = Phase::Head(Box::new(scan));
            return Ok((0, None));
        };
        self.phase = Phase::Fresh;
        let whole = match head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => {
                let length = length as usize;
                (length <= cx.site.limits.body_bytes && rest.len() - head.len >= length).then_some(length)
            }
            Framing::Chunked => None,
        };
        if let Some(length) = whole {
            let body = &rest[head.len..head.len + length];
            return Ok((head.len + length, self.dispatch(&head, body, cx, out)));
        }
        self.await_body(&head, rest, cx, out)
    }

    /// The head is there and its body is not: whoever may not send it is told before it comes.
    fn await_body(
        &mut self,
        head: &Head<'_>,
        rest: &[u8],
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Effect>), HttpError> {
        let decoder = BodyDecoder::new(head.framing, &cx.site.limits)?;
        let mut asked = self.asked(head, cx);
        if let Err(refusal) = self.route(head, &mut asked, cx) {
            asked.keep_alive = false;
            asked.refuse(&refusal, cx, out);
            self.phase = Phase::Closing;
            return Ok((rest.len(), Some(Effect::Refuse)));
        }
        if head.expect_continue && rest.len() == head.len {
            out.extend_from_slice(http::CONTINUE);
        }
        let head = rest[..head.len].to_vec();
        let taken = head.len();
        self.phase = Phase::Body(Box::new(Arriving { head, body: Vec::new(), decoder }));
        Ok((taken, None))
    }

    /// Answers a whole request, or says what is needed to.
    fn dispatch(
        &mut self,
        head: &Head<'_>,
        body: &[u8],
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Effect> {
        cx.metrics.count(Counter::Requests);
        let mut asked = self.asked(head, cx);
        let outcome = self.route(head, &mut asked, cx).and_then(|route| match route {
            Route::Page(page) => Ok(Some(Effect::Page(page))),
            Route::Options(allow) => {
                asked.options(&allow, cx, out);
                Ok(None)
            }
            Route::Door { verb, param } => {
                let request = Request { head, body };
                let command = asked.dialect.command(verb, &param, &request, cx.now.wall)?;
                asked.authorize(&command)?;
                asked.perform(command, &request, cx, out)
            }
        });
        match outcome {
            Ok(Some(effect)) => {
                self.phase = Phase::Waiting(Box::new(asked));
                return Some(effect);
            }
            Ok(None) => {}
            Err(refusal) => asked.refuse(&refusal, cx, out),
        }
        (!self.next_request(asked.keep_alive)).then_some(Effect::Close)
    }

    fn asked(&self, head: &Head<'_>, cx: &Context<'_>) -> Asked {
        let offer = &cx.site.listeners[usize::from(self.listener)];
        Asked {
            dialect: offer.dialects.iter().next().unwrap_or(DialectId::ALL[0]),
            stream: false,
            head_only: head.method == Method::Head,
            keep_alive: head.keep_alive && !cx.draining,
            minor: head.minor,
            status: 200,
            origin: None,
            principal: None,
        }
    }

    /// Where the request leads, if its origin and its token let it; fills in what the answer needs.
    fn route<'a>(&self, head: &Head<'a>, asked: &mut Asked, cx: &Context<'_>) -> Result<Route<'a>, Refusal> {
        let offer = &cx.site.listeners[usize::from(self.listener)];
        if head.method == Method::Options {
            return self.options(head, asked, offer);
        }
        match dialect::find(offer.dialects, head.method, head.path) {
            Found::Door { dialect, door, param } => {
                asked.dialect = dialect;
                asked.stream = door.verb == Verb::Stream;
                asked.status = if matches!(door.verb, Verb::Publish(_)) { 202 } else { 200 };
                asked.admit_origin(head, offer)?;
                if door.access != Access::Open {
                    asked.admit_token(head, door.access, cx)?;
                }
                Ok(Route::Door { verb: door.verb, param })
            }
            Found::WrongMethod(allow) => Err(Refusal::MethodNotAllowed(allow)),
            Found::BadPath => Err(Refusal::Invalid("the path is not percent-encoded UTF-8".into())),
            Found::Nothing => self.page(head, asked, cx).map(Route::Page),
        }
    }

    fn page(&self, head: &Head<'_>, asked: &mut Asked, cx: &Context<'_>) -> Result<Page, Refusal> {
        let Some(&(_, page)) = PAGES.iter().find(|(path, _)| *path == head.path) else {
            return Err(Refusal::NotFound("no such path"));
        };
        if !matches!(head.method, Method::Get | Method::Head) {
            return Err(Refusal::MethodNotAllowed("GET, HEAD"));
        }
        let offers = &cx.site.listeners;
        let admin = offers[usize::from(self.listener)].admin;
        if page == Page::Metrics && !admin && offers.iter().any(|offer| offer.admin) {
            return Err(Refusal::NotFound("metrics are served on the admin listener"));
        }
        if page == Page::Metrics && !admin && !self.is_direct(head) {
            asked.admit_token(head, Access::Reader, cx)?;
            if !asked.principal.as_ref().is_some_and(Principal::is_admin) {
                return Err(Refusal::Forbidden("metrics are for role admin, or for this machine itself"));
            }
        }
        Ok(page)
    }

    /// Whether the request comes from this machine and was not passed on by a proxy on it.
    fn is_direct(&self, head: &Head<'_>) -> bool {
        let forwarded = ["x-forwarded-for", "x-real-ip", "forwarded", "via"];
        self.local && forwarded.iter().all(|name| head.header(name).is_none())
    }

    /// OPTIONS, and with it the preflight of a browser (Fetch standard, section 4.8).
    fn options<'a>(&self, head: &Head<'a>, asked: &mut Asked, offer: &Offer) -> Result<Route<'a>, Refusal> {
        if head.path == "*" {
            return Ok(Route::Options(Cow::Borrowed("GET, HEAD, POST, OPTIONS")));
        }
        let allow = match dialect::find(offer.dialects, Method::Other, head.path) {
            Found::WrongMethod(allow) => allow,
            _ if PAGES.iter().any(|(path, _)| *path == head.path) => "GET, HEAD",
            _ => return Err(Refusal::NotFound("no such path")),
        };
        let wanted = head.header("access-control-request-method");
        let method = match wanted {
            Some(b"POST") => Method::Post,
            _ => Method::Get,
        };
        if let Found::Door { dialect, .. } = dialect::find(offer.dialects, method, head.path) {
            asked.dialect = dialect;
            asked.admit_origin(head, offer)?;
        }
        Ok(Route::Options(Cow::Owned(format!("{allow}, OPTIONS"))))
    }
}
