/* SPDX-License-Identifier: GPL-2.0-only */
/* Which threads of an app are in the class, and how many may be. */
#ifndef SYRUP_SCX_MEMBERS_BPF_H
#define SYRUP_SCX_MEMBERS_BPF_H

#include "root.bpf.h"

/*
 * Threads of each app that are SCHED_EXT now, counted where they enter and leave
 * the class, so that nobody who asks has to look at every thread of the machine.
 * The loader never changes the slot of a thread while it is in the class.
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

/* The slot in whose `syrup_starting` a thread is counted. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} syrup_starts_in SEC(".maps");

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
 * May the app have another thread in the class? On several CPUs at once a few more come than
 * it may have.
 */
__noinline int has_room(u32 slot)
{
	struct syrup_scx_app *app = app_of(slot);
	s64 of_user = 0;
	u32 i;

	if (!app)
		return 0;
	bpf_for(i, 1, SYRUP_MAX_APPS) {
		struct syrup_scx_app *other = app_of(i);

		if (other && other->in_use && other->user == app->user)
			of_user += members_of(i);
	}
	return members_of(slot) < app->most_threads && of_user < app->most_threads_of_user;
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
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);
	u32 slot = 0, generation = 0;

	if (starts_in)
		*starts_in = 0;
	if (t) {
		t->waits_in = 0;
		t->state = 0;
		t->runnable_at_ns = 0;
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
	t = bpf_task_storage_get(&syrup_threads, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -12;
	t->slot = slot;
	t->generation = generation;
	t->index = SYRUP_INDEX_NONE;
	return 0;
}

/* Has entered the class, or was not forked after all. */
static __always_inline void has_started(struct task_struct *p)
{
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);

	if (!starts_in || !*starts_in)
		return;
	add_to_slot(&syrup_starting, *starts_in, -1);
	*starts_in = 0;
}

static __always_inline void count_member(struct task_struct *p, s64 change)
{
	struct syrup_scx_thread *t = thread_of(p);
	u32 slot = t ? t->slot : 0;
	struct syrup_scx_app *app = app_of(slot);

	/* Also while its app is going, so that it is counted out where it was counted in. */
	if (!t || !app || app->generation != t->generation)
		slot = 0;
	add_to_slot(&syrup_members, slot, change);
}

/*
 * Nobody asked for one that comes by itself: it was registered once and left the class, or a
 * thread that was out of it has forked it. Beyond what its app may have it is nobody's.
 */
static __always_inline void comes_by_itself(struct task_struct *p)
{
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);
	struct syrup_scx_thread *t = thread_of(p);
	u32 slot = slot_of(t);

	if (!t || !slot || (starts_in && *starts_in) || has_room(slot))
		return;
	count_refused(slot);
	t->slot = 0;
}

#endif /* SYRUP_SCX_MEMBERS_BPF_H */
