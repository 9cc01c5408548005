//! A request and what its answer needs: who asks, in which dialect, and how the response is framed.

use protocol::dialect::{self, DialectId};
use protocol::http::{Head, Response};
use protocol::message::{Access, Command, Notice, Refusal, Reply, Request};
use protocol::{sse, time};

use super::{Context, Effect, Offer, StreamRequest};
use crate::auth::Principal;
use crate::metrics::Counter;

/// What has to be known of a request when its answer comes.
pub(super) struct Asked {
    pub(super) dialect: DialectId,
    /// Whether refusals take the form of a stream's error event.
    pub(super) stream: bool,
    pub(super) head_only: bool,
    pub(super) keep_alive: bool,
    pub(super) minor: u8,
    pub(super) status: u16,
    pub(super) origin: Option<Box<str>>,
    pub(super) principal: Option<Principal>,
}

impl Asked {
    /// Lets pass what is no browser, the listener's own pages, and the pages of listed origins.
    pub(super) fn admit_origin(&mut self, head: &Head<'_>, offer: &Offer) -> Result<(), Refusal> {
        let Some(origin) = head.header("origin") else { return Ok(()) };
        let origin = std::str::from_utf8(origin).map_err(|_| Refusal::ForeignOrigin)?;
        let own = head.header("host").and_then(|host| std::str::from_utf8(host).ok());
        let page = origin.split_once("://").map(|(_, authority)| authority);
        if page.is_some() && page == own {
            return Ok(());
        }
        let listed = offer.origins.iter().any(|(dialect, origins)| {
            *dialect == self.dialect && origins.iter().any(|listed| listed == origin || listed == "*")
        });
        if !listed {
            return Err(Refusal::ForeignOrigin);
        }
        self.origin = Some(origin.into());
        Ok(())
    }

    pub(super) fn admit_token(
        &mut self,
        head: &Head<'_>,
        access: Access,
        cx: &Context<'_>,
    ) -> Result<(), Refusal> {
        let token = dialect::bearer(head);
        let principal = token.and_then(|token| cx.site.keys.verify(&token, cx.now.wall / 1000).ok());
        let Some(principal) = principal else {
            cx.metrics.count(Counter::Unauthenticated);
            return Err(Refusal::Unauthenticated);
        };
        if access == Access::Publisher && !principal.may_publish() {
            return Err(Refusal::Forbidden("publishing needs role ingest or admin"));
        }
        self.principal = Some(principal);
        Ok(())
    }

    /// Holds the command's topics against the token's filters.
    pub(super) fn authorize(&self, command: &Command) -> Result<(), Refusal> {
        const NOT_ALLOWED: Refusal = Refusal::Forbidden("the token does not allow this well");
        let may = |topic: &str| self.principal.as_ref().is_none_or(|principal| principal.may_see(topic));
        match command {
            Command::Publish(batch) => match batch.rows().all(|row| may(row.topic)) {
                true => Ok(()),
                false => Err(NOT_ALLOWED),
            },
            Command::Stream { topic, .. } | Command::History { topic, .. } | Command::Latest { topic } => {
                if may(topic) {
                    Ok(())
                } else {
                    Err(NOT_ALLOWED)
                }
            }
            _ => Ok(()),
        }
    }

    /// Answers at once what can be, and says what the rest needs.
    pub(super) fn perform(
        &self,
        command: Command,
        request: &Request<'_>,
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Effect>, Refusal> {
        match command {
            Command::Login { username, password } => Ok(Some(Effect::Login { username, password })),
            Command::Publish(batch) => Ok(Some(Effect::Publish(batch))),
            Command::Stream { .. } if self.head_only => {
                self.respond(200, "text/event-stream", b"", &[], cx, out);
                Ok(None)
            }
            Command::Stream { topic, snapshot, after } => {
                let expires = self.principal.as_ref().map_or(u64::MAX, |principal| principal.expires);
                let dialect = self.dialect;
                Ok(Some(Effect::Stream(StreamRequest { dialect, topic, snapshot, after, expires })))
            }
            Command::Refresh => {
                let principal = self.principal.as_ref().ok_or(Refusal::Unauthenticated)?;
                let (now, expires_in) = (cx.now.wall / 1000, cx.site.token_ttl);
                let issued = cx.site.keys.issue(principal, expires_in, now);
                let access_token = &issued.map_err(|_| Refusal::Forbidden("this token can't be renewed"))?;
                let mut body = Vec::new();
                self.dialect.reply(&Reply::Token { access_token, expires_in }, &mut body);
                self.respond(200, "application/json", &body, &[], cx, out);
                Ok(None)
            }
            Command::Health => {
                let mut body = Vec::new();
                self.dialect.reply(&Reply::Health { time: cx.now.wall }, &mut body);
                self.respond(200, "application/json", &body, &[], cx, out);
                Ok(None)
            }
            Command::Echo => {
                let sent = request.head.header("content-type");
                let content_type = sent.and_then(|value| std::str::from_utf8(value).ok());
                let content_type = content_type.unwrap_or("application/octet-stream");
                self.respond(200, content_type, request.body, &[], cx, out);
                Ok(None)
            }
            Command::Topics { .. } | Command::History { .. } | Command::Latest { .. } => {
                Ok(Some(Effect::Read(command)))
            }
        }
    }

    pub(super) fn options(&self, allow: &str, cx: &Context<'_>, out: &mut Vec<u8>) {
        let mut fields = vec![("Allow", allow)];
        if self.origin.is_some() {
            fields.extend([
                ("Access-Control-Allow-Methods", allow),
                ("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID"),
                ("Access-Control-Max-Age", "600"),
            ]);
        }
        self.respond(204, "", b"", &fields, cx, out);
    }

    /// Writes a refusal in the dialect's words: JSON, or where a stream was asked for, its error event, so that users of
    /// EventSource and of curl both see why.
    pub(super) fn refuse(&self, refusal: &Refusal, cx: &Context<'_>, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let content_type = if self.stream {
            let mut data = Vec::new();
            let name = self.dialect.notice(&Notice::Error(refusal), &mut data);
            sse::event(&mut body, None, name, &data);
            "text/event-stream"
        } else {
            self.dialect.refusal(refusal, &mut body);
            "application/json"
        };
        let seconds;
        let field = match refusal {
            Refusal::Unauthenticated => Some(("WWW-Authenticate", "Bearer")),
            Refusal::MethodNotAllowed(allow) => Some(("Allow", *allow)),
            Refusal::RateLimited { retry_after } | Refusal::Busy { retry_after } => {
                seconds = retry_after.to_string();
                Some(("Retry-After", seconds.as_str()))
            }
            _ => None,
        };
        self.respond(refusal.status(), content_type, &body, field.as_slice(), cx, out);
    }

    pub(super) fn respond(
        &self,
        status: u16,
        content_type: &str,
        body: &[u8],
        fields: &[(&str, &str)],
        cx: &Context<'_>,
        out: &mut Vec<u8>,
    ) {
        let response = Response {
            status,
            content_type,
            body,
            head_only: self.head_only,
            minor: self.minor,
            keep_alive: self.keep_alive && !cx.draining,
        };
        let date = http_date(cx.now.wall);
        let common = [("Cache-Control", "no-store"), ("Date", date.as_str())];
        response.write(fields.iter().copied().chain(self.origin_fields()).chain(common), out);
    }

    pub(super) fn origin_fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self
            .origin
            .as_ref()
            .map(|origin| [("Access-Control-Allow-Origin", &**origin), ("Vary", "Origin")]);
        fields.into_iter().flatten()
    }
}

/// A refusal of something that is not a request one could answer in any dialect. The connection closes after it.
pub(super) fn plain(status: u16, text: &str, cx: &Context<'_>, out: &mut Vec<u8>) {
    let response = Response {
        status,
        content_type: "text/plain; charset=utf-8",
        body: text.as_bytes(),
        head_only: false,
        minor: 1,
        keep_alive: false,
    };
    response.write([("Date", http_date(cx.now.wall).as_str())], out);
}

pub(super) fn http_date(wall: u64) -> String {
    let mut text = Vec::with_capacity(32);
    time::write_http_date(wall, &mut text);
    String::from_utf8(text).unwrap_or_default()
}
