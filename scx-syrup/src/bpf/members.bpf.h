/* SPDX-License-Identifier: GPL-2.0-only */
/* Which threads of an app are in the class, how many may be, and under which index each is. */
#ifndef SYRUP_SCX_MEMBERS_BPF_H
#define SYRUP_SCX_MEMBERS_BPF_H

#include "root.bpf.h"

/*
 * Threads of each app that are SCHED_EXT now, counted where they enter and leave
 * the class, so that nobody who asks has to look at every thread of the machine.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, __s64);
} syrup_members SEC(".maps");

/* Those being forked: they enter the class soon, and nobody sees them yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, __s64);
} syrup_starting SEC(".maps");

/*
 * Where a thread is counted, whatever it is by now: whoever counted it there takes it out there.
 * And what a loader asked for it to be, which is written by the root's program that it runs, like
 * all of this. Made with the thread's other storage.
 */
struct syrup_membership {
	u32 starts_in;  /* slot in whose `syrup_starting` it is; 0: none */
	u32 counted_in; /* slot in whose `syrup_members` it is */
	u32 generation; /* of the slot's apps then */
	u32 returns;    /* 1: it was SCHED_EXT when the scheduler was attached again */
	/* When a loader asked for what it is to be in the class; 0: nobody did. */
	u64 asked_ns;
	u32 asked_slot;
	u32 asked_generation;
	u32 asked_index;
	u8 was_policy;
	u8 was_priority;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct syrup_membership);
} syrup_memberships SEC(".maps");

static __always_inline struct syrup_membership *membership_of(struct task_struct *p)
{
	return bpf_task_storage_get(&syrup_memberships, p, NULL, 0);
}

/* Makes both storages of a thread; NULL where there is no memory. Only where one may sleep. */
static __always_inline struct syrup_membership *make_member(struct task_struct *p)
{
	struct syrup_scx_thread *t =
		bpf_task_storage_get(&syrup_threads, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!t)
		return NULL;
	return bpf_task_storage_get(&syrup_memberships, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/*
 * Who has which index: entered when a thread of the class takes it, removed when it leaves the
 * class or loses it. Whoever takes an index out of the thread's storage, which one does, removes
 * the entry.
 */
struct syrup_index {
	u32 slot;
	u32 generation;
	u32 index;
};

struct syrup_holder {
	u64 task; /* its address, to be compared: exec changes the id of a thread */
	s32 tid;
	s32 tgid;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH); /* allocated at once: there is no time for that later */
	__uint(max_entries, SYRUP_SCX_INDICES);
	__type(key, struct syrup_index);
	__type(value, struct syrup_holder);
} syrup_indices SEC(".maps");

/* So that a free index is found without a look at all that are taken. */
struct syrup_free {
	u32 lowest; /* the app's threads have all below it */
	u32 times;  /* that one was given back */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, struct syrup_free);
} syrup_free SEC(".maps");

static __always_inline void add_to_slot(void *counts, u32 slot, s64 change)
{
	s64 *count = bpf_map_lookup_elem(counts, &slot);

	if (count)
		__sync_fetch_and_add(count, change);
}

/* Threads of the slot that are in the class, or will be. */
static __always_inline s64 members_of(u32 slot)
{
	s64 *members = bpf_map_lookup_elem(&syrup_members, &slot);
	s64 *starting = bpf_map_lookup_elem(&syrup_starting, &slot);

	return members && starting ? *members + *starting : 0;
}

/*
 * May the app have another thread in the class? enum syrup_scx_room. Each of its threads that
 * is just starting another may bring one more than it may have.
 */
__noinline int room_in(u32 slot)
{
	struct syrup_scx_app *app = app_of(slot);
	u32 most_of_user = 0, i;
	s64 of_user = 0;

	if (!app)
		return SYRUP_SCX_APP_FULL;
	bpf_for(i, 1, SYRUP_MAX_APPS) {
		struct syrup_scx_app *other = app_of(i);

		if (!other || !other->in_use || other->user != app->user)
			continue;
		of_user += members_of(i);
		if (other->most_threads_of_user > most_of_user)
			most_of_user = other->most_threads_of_user;
	}
	if (members_of(slot) >= app->most_threads)
		return SYRUP_SCX_APP_FULL;
	return of_user >= most_of_user ? SYRUP_SCX_USER_FULL : SYRUP_SCX_ROOM;
}

static __always_inline void count_refused(u32 slot)
{
	struct syrup_scx_time *time = time_of(slot);

	if (!time)
		return;
	__sync_fetch_and_add(&time->refused, 1);
	time->refused_ns = bpf_ktime_get_ns();
}

/*
 * The scheduler is attached to what runs already. For the first time that is nobody's. When it
 * was ended, and is put back, it is threads that it had, whose wait begins anew, and what they
 * started meanwhile, which is their app's as well.
 */
static __always_inline s32 joins_again(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p), *leader;
	struct syrup_membership *m = membership_of(p);
	u32 slot = 0, generation = 0;

	if (t && m) {
		m->starts_in = 0;
		m->returns = p->policy == SCHED_EXT;
		t->waits_in = 0;
		return 0;
	}
	if (p->policy != SCHED_EXT)
		return 0;
	bpf_rcu_read_lock();
	leader = thread_of(p->group_leader);
	if (leader) {
		slot = leader->slot;
		generation = leader->generation;
	}
	bpf_rcu_read_unlock();
	if (!slot)
		return 0;
	m = make_member(p);
	t = thread_of(p);
	if (!m || !t)
		return -12;
	t->slot = slot;
	t->generation = generation;
	t->index = SYRUP_INDEX_NONE;
	t->claim = SYRUP_INDEX_NONE;
	return 0;
}

/* Has entered the class, or was not forked after all. */
static __always_inline void has_started(struct task_struct *p)
{
	struct syrup_membership *m = membership_of(p);

	if (!m || !m->starts_in)
		return;
	add_to_slot(&syrup_starting, m->starts_in, -1);
	m->starts_in = 0;
}

/* The app that the thread is of, also while that is going; 0: none. */
static __always_inline u32 belongs_to(const struct syrup_scx_thread *t)
{
	struct syrup_scx_app *app = app_of(t->slot);

	return app && app->generation == t->generation ? t->slot : 0;
}

/*
 * Nobody asked for one that comes by itself: it was registered once and left the class, or a
 * thread that was out of it has forked it. Beyond what its app may have it is nobody's. And
 * whoever took it out of the class has decided what it is otherwise.
 */
static __always_inline void comes_by_itself(struct syrup_scx_thread *t)
{
	u32 slot = slot_of(t);

	t->was_policy = 0;
	t->was_priority = 0;
	if (!slot || room_in(slot) == SYRUP_SCX_ROOM)
		return;
	count_refused(slot);
	t->slot = 0;
}

/* Is what a loader asked for still to be done? It is done once. */
static __always_inline bool is_asked(struct syrup_membership *m)
{
	u64 asked_ns = __sync_lock_test_and_set(&m->asked_ns, 0);

	return asked_ns &&
	       before(bpf_ktime_get_ns(), asked_ns + SYRUP_SCX_REGISTER_MS * NSEC_PER_MSEC);
}

static __always_inline void join(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_membership *m = membership_of(p);
	u32 slot;

	if (!t || !m)
		return;
	/* Nothing has placed it yet. */
	t->state = 0;
	t->runnable_at_ns = 0;
	t->waits_since_ns = 0;
	if (is_asked(m)) {
		t->slot = m->asked_slot;
		t->generation = m->asked_generation;
		t->claim = m->asked_index;
		t->was_policy = m->was_policy;
		t->was_priority = m->was_priority;
		t->runtime_ns = 0;
	} else if (!m->starts_in && !m->returns) {
		comes_by_itself(t);
	}
	m->returns = 0;
	slot = belongs_to(t);
	if (!slot)
		return;
	m->counted_in = slot;
	m->generation = t->generation;
	add_to_slot(&syrup_members, slot, 1);
}

static __always_inline void leave(struct task_struct *p)
{
	struct syrup_membership *m = membership_of(p);
	struct syrup_scx_app *app;
	u32 slot;

	/* The kernel lets a thread leave that has not entered, between its fork and its start. */
	if (!m || !m->counted_in)
		return;
	slot = m->counted_in;
	m->counted_in = 0;
	app = app_of(slot);
	if (app && app->generation == m->generation)
		add_to_slot(&syrup_members, slot, -1);
}

/* From where on a free one is looked for. */
static __always_inline void lower_free(struct syrup_free *free, u32 index)
{
	u32 i;

	bpf_for(i, 0, 8) {
		u32 lowest = READ_ONCE(free->lowest);

		if (lowest <= index ||
		    __sync_val_compare_and_swap(&free->lowest, lowest, index) == lowest)
			return;
	}
	/* So many at once: none is below that. */
	__sync_lock_test_and_set(&free->lowest, 0);
}

static __always_inline void remove_index(const struct syrup_index *key, struct task_struct *p)
{
	struct syrup_holder *holder = bpf_map_lookup_elem(&syrup_indices, key);
	struct syrup_scx_app *app = app_of(key->slot);
	u32 slot = key->slot;
	struct syrup_free *free = bpf_map_lookup_elem(&syrup_free, &slot);
	u32 i;

	/* The map's lock gives up where another CPU holds it for long, as a virtual one may. */
	bpf_for(i, 0, 8) {
		if (!holder || holder->task != (u64)p || !bpf_map_delete_elem(&syrup_indices, key))
			break;
	}
	if (!free || !app || app->generation != key->generation)
		return;
	__sync_fetch_and_add(&free->times, 1);
	lower_free(free, key->index);
}

/* 0, or an error: the table is full, or another has it (BPF_NOEXIST), or see remove_index(). */
static __always_inline long enter_index(const struct syrup_index *key, struct task_struct *p,
					u64 flags)
{
	struct syrup_holder holder = {.task = (u64)p, .tid = p->pid, .tgid = p->tgid};
	long err = -11;
	u32 i;

	bpf_for(i, 0, 8) {
		err = bpf_map_update_elem(&syrup_indices, key, &holder, flags);
		if (!err || err == -7 /* E2BIG */ || err == -17 /* EEXIST */)
			break;
	}
	return err;
}

/*
 * The index of a thread is set where it was none, and taken out, in one step each: what gives it
 * one (give_to()) runs beside its coming and going. Whoever took it out removes the entry.
 */
static __always_inline bool take_index(struct syrup_scx_thread *t, u32 index)
{
	return __sync_val_compare_and_swap(&t->index, SYRUP_INDEX_NONE, index) == SYRUP_INDEX_NONE;
}

static __always_inline bool lose_index(struct syrup_scx_thread *t, u32 index)
{
	return __sync_val_compare_and_swap(&t->index, index, SYRUP_INDEX_NONE) == index;
}

/* Of one that enters the class: another's index is not taken from it here. */
static __always_inline void take_claim(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_index key = {};
	struct syrup_holder *holder;

	if (!t || !slot_of(t) || t->claim == SYRUP_INDEX_NONE)
		return;
	key.slot = t->slot;
	key.generation = t->generation;
	key.index = t->claim;
	if (!enter_index(&key, p, BPF_NOEXIST)) {
		/* It was given another meanwhile. */
		if (!take_index(t, key.index) && t->index != key.index)
			remove_index(&key, p);
		return;
	}
	/*
	 * It claims it no more where another has it. Whoever entered it for this thread, or is
	 * taking it from it, goes on with that.
	 */
	holder = bpf_map_lookup_elem(&syrup_indices, &key);
	if (holder && holder->task != (u64)p)
		__sync_val_compare_and_swap(&t->claim, key.index, SYRUP_INDEX_NONE);
}

/* Of one that leaves the class: it claims the index when it comes again. */
static __always_inline void give_index(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_index key = {};

	if (!t)
		return;
	key.slot = t->slot;
	key.generation = t->generation;
	key.index = __sync_lock_test_and_set(&t->index, SYRUP_INDEX_NONE);
	if (key.index != SYRUP_INDEX_NONE)
		remove_index(&key, p);
}

/*
 * Takes an index out of the storage of the thread with this id, if that one has it
 * (`is_theirs`). Returns whether somebody else was just doing that, who removes the entry then.
 */
static __always_inline bool is_just_lost(s32 tid, const struct syrup_index *key, bool *is_theirs)
{
	struct task_struct *p = bpf_task_from_pid(tid);
	struct syrup_scx_thread *t;
	bool lost = false;

	if (!p)
		return false;
	t = thread_of(p);
	if (t && t->slot == key->slot && t->generation == key->generation &&
	    t->index == key->index) {
		*is_theirs = true;
		if (lose_index(t, key->index))
			t->claim = SYRUP_INDEX_NONE;
		else
			lost = true;
	}
	bpf_task_release(p);
	return lost;
}

/*
 * Gives a thread of the class an index, which whoever has it loses; 0 or an error. One that has
 * ended, and whose id is gone, gives it back itself, soon.
 */
static __always_inline s32 give_to(struct task_struct *p, struct syrup_scx_thread *t,
				   const struct syrup_membership *m, struct syrup_index *key,
				   bool by_force)
{
	struct syrup_holder *holder = bpf_map_lookup_elem(&syrup_indices, key);
	u32 index = key->index, had;
	bool is_theirs = false;
	s32 err;

	if (holder && holder->task == (u64)p && t->index == index)
		return 0;
	if (holder && holder->task != (u64)p) {
		s32 tid = holder->tid, tgid = holder->tgid;

		if (is_just_lost(tid, key, &is_theirs))
			return -11; /* EAGAIN */
		/* The thread that called exec has its leader's id since. */
		if (!is_theirs && is_just_lost(tgid, key, &is_theirs))
			return -11;
		if (!is_theirs && !by_force)
			return -11;
	}
	err = enter_index(key, p, BPF_ANY);
	if (err)
		return err == -7 /* E2BIG */ ? err : -11;
	t->claim = index;
	had = __sync_lock_test_and_set(&t->index, index);
	if (had != SYRUP_INDEX_NONE && had != index) {
		key->index = had;
		remove_index(key, p);
		key->index = index;
	}
	/*
	 * It may have left the class, or the app, before it had this one to give back: leave()
	 * writes that before give_index() looks. Its policy is changed only after both.
	 */
	if (READ_ONCE(m->counted_in) == key->slot && READ_ONCE(m->generation) == key->generation)
		return 0;
	/* The same number may be another app's, which it is by now. */
	if (had != index)
		lose_index(t, index);
	remove_index(key, p);
	return -16; /* EBUSY */
}

#endif /* SYRUP_SCX_MEMBERS_BPF_H */
