//! The open sessions of all clients, for `pg_stat_activity`, `pg_cancel_backend` and `pg_terminate_backend`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use query::system::ActivityInfo;
use sql::Parsed;

/// Bytes of a statement that are shown.
const QUERY_BYTES_MAX: usize = 1024;

/// Stops a session's statement, or with `true` the whole session.
pub type Stop = Box<dyn Fn(bool) + Send + Sync>;

/// All open sessions, by process id.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<BTreeMap<i32, Arc<Seat>>>,
}

/// One session's entry.
struct Seat {
    info: Mutex<Activity>,
    stop: Stop,
}

/// What is known of a session, and the statement as it was parsed: its text is only cut out for those who ask.
struct Activity {
    shown: ActivityInfo,
    statement: Option<Arc<Parsed>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sessions", self.open.lock().len())
    }
}

impl Sessions {
    /// Adds a session that has just connected; it is open until the result is dropped.
    pub fn open(self: &Arc<Self>, info: ActivityInfo, stop: Stop) -> OpenSession {
        let pid = info.pid;
        let seat = Arc::new(Seat { info: Mutex::new(Activity { shown: info, statement: None }), stop });
        self.open.lock().insert(pid, Arc::clone(&seat));
        OpenSession { sessions: Arc::clone(self), seat, pid }
    }

    pub fn all(&self) -> Vec<ActivityInfo> {
        let seats: Vec<Arc<Seat>> = self.open.lock().values().cloned().collect();
        seats
            .iter()
            .map(|seat| {
                let activity = seat.info.lock();
                let mut shown = activity.shown.clone();
                if let Some(statement) = &activity.statement {
                    let text = &statement.text;
                    shown.query = text[..text.floor_char_boundary(QUERY_BYTES_MAX)].to_string();
                }
                shown
            })
            .collect()
    }

    /// Ends all sessions: their clients are to connect again, perhaps elsewhere.
    pub fn end_all(&self) {
        let seats: Vec<Arc<Seat>> = self.open.lock().values().cloned().collect();
        seats.iter().for_each(|seat| (seat.stop)(true));
    }

    /// Stops a session's statement or the session; false when there is no such session.
    pub fn stop(&self, pid: i32, whole_session: bool) -> bool {
        let seat = self.open.lock().get(&pid).cloned();
        if let Some(seat) = &seat {
            (seat.stop)(whole_session);
        }
        seat.is_some()
    }
}

/// A session's place among the open ones.
pub struct OpenSession {
    sessions: Arc<Sessions>,
    seat: Arc<Seat>,
    pid: i32,
}

impl OpenSession {
    /// The session goes on among those of another engine.
    pub fn move_to(&mut self, sessions: &Arc<Sessions>) {
        if !Arc::ptr_eq(&self.sessions, sessions) {
            self.sessions.open.lock().remove(&self.pid);
            sessions.open.lock().insert(self.pid, Arc::clone(&self.seat));
            self.sessions = Arc::clone(sessions);
        }
    }

    /// A statement starts.
    pub fn runs(&self, statement: &Arc<Parsed>, now_us: i64) {
        let mut activity = self.seat.info.lock();
        activity.statement = Some(Arc::clone(statement));
        let shown = &mut activity.shown;
        shown.query_started_at_us = Some(now_us);
        shown.transaction_started_at_us.get_or_insert(now_us);
        if shown.state != "active" {
            shown.state = "active".to_string();
            shown.state_changed_at_us = Some(now_us);
        }
    }

    /// The client has its answer; `state` is as `pg_stat_activity` has it.
    pub fn waits(&self, state: &str, application_name: &str, now_us: i64) {
        let mut activity = self.seat.info.lock();
        let shown = &mut activity.shown;
        if shown.state != state {
            shown.state = state.to_string();
            shown.state_changed_at_us = Some(now_us);
        }
        if state == "idle" {
            shown.transaction_started_at_us = None;
        }
        if shown.application_name != application_name {
            shown.application_name = application_name.to_string();
        }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.sessions.open.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_session_is_listed_and_can_be_stopped_while_it_is_open() {
        let sessions = Arc::new(Sessions::default());
        let stops = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&stops);
        let info = ActivityInfo { pid: 7, state: "idle".into(), ..ActivityInfo::default() };
        let stop = move |whole: bool| {
            counted.fetch_add(1 + u32::from(whole), Ordering::Relaxed);
        };
        let open = sessions.open(info, Box::new(stop));
        let statement = sql::parse("SELECT 1; SELECT 'two'", &sql::Limits::default()).unwrap().pop().unwrap();
        open.runs(&Arc::new(statement), 5);
        let shown = sessions.all().remove(0);
        assert_eq!((shown.state.as_str(), shown.query.as_str()), ("active", "SELECT 'two'"));
        assert_eq!((shown.query_started_at_us, shown.transaction_started_at_us), (Some(5), Some(5)));
        open.waits("idle in transaction", "app", 9);
        let shown = sessions.all().remove(0);
        assert_eq!((shown.state.as_str(), shown.application_name.as_str()), ("idle in transaction", "app"));
        assert_eq!((shown.state_changed_at_us, shown.transaction_started_at_us), (Some(9), Some(5)));
        assert!(sessions.stop(7, false) && sessions.stop(7, true) && !sessions.stop(8, true));
        assert_eq!(stops.load(Ordering::Relaxed), 3);
        sessions.end_all();
        assert_eq!(stops.load(Ordering::Relaxed), 5);
        drop(open);
        assert!(sessions.all().is_empty() && !sessions.stop(7, false));
    }
}
