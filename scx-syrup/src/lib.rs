//! The thread hook: a resident sched_ext root scheduler that tail-calls app policies.
