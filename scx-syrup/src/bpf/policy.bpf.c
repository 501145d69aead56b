// SPDX-License-Identifier: GPL-2.0-only
/*
 * The trusted half of a thread policy: what runs before and after the user's
 * schedule(). The root scheduler has filled the input; here the verdict is
 * checked, counted and enforced.
 *
 * The struct_ops map below is created and never attached. It tells libbpf which
 * member of sched_ext_ops the program is for; the program lives in the root
 * scheduler's PROG_ARRAY. The constants are written into the object before it
 * is opened, so they change together with the program and a replacement is
 * one step.
 */
#include "shared.bpf.h"

char _license[] SEC("license") = "GPL";

const volatile __u32 syrup_slot = 0;
const volatile __u32 syrup_nr_executors = 1;
const volatile __u32 syrup_is_cores = 0;
const volatile __u32 syrup_preempt = 0;
/* The CPU of each core executor. */
const volatile __u16 syrup_cpu_of[SYRUP_MAX_CPUS] = {};

/* Choices per executor of this deployment; the loader brings it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u64);
} syrup_verdicts SEC(".maps");

__s32 schedule(struct syrup_thread *t);

static __always_inline void count_verdict(u32 executor)
{
	u64 *value = bpf_map_lookup_elem(&syrup_verdicts, &executor);

	if (value)
		(*value)++;
}

SEC("struct_ops/enqueue")
void BPF_PROG(syrup_policy, struct task_struct *p, u64 enq_flags)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_scx_app *app = app_of(syrup_slot);
	u32 zero = 0, slice_us, queue, place, cpu = 0;
	bool to_core = false, has_cpu;
	struct syrup_thread *in;
	u64 slice_ns;
	__s32 verdict;
	s32 home;

	in = bpf_map_lookup_elem(&syrup_input, &zero);
	if (!t || !app || !in)
		return; /* cannot be: the root scheduler has just used all three */

	verdict = schedule(in);

	queue = app->last_queue;
	if (verdict >= 0 && (u32)verdict < syrup_nr_executors) {
		to_core = syrup_is_cores;
		if (to_core) {
			cpu = syrup_cpu_of[verdict % SYRUP_MAX_CPUS];
			to_core = bpf_cpumask_test_cpu(cpu, p->cpus_ptr) && is_online(cpu);
		} else {
			queue = verdict % SYRUP_MAX_QUEUES;
		}
		if (syrup_is_cores && !to_core) {
			/* The thread's own affinity excludes that core, or it is offline. */
			count(syrup_slot, SYRUP_ENFORCE_FAILED);
		} else {
			count(syrup_slot, SYRUP_CHOSEN);
			count_verdict(verdict);
		}
	} else if (verdict == SYRUP_PASS) {
		count(syrup_slot, SYRUP_PASSED);
	} else {
		/* SYRUP_DROP as well: a thread cannot be discarded. */
		count(syrup_slot, SYRUP_OUT_OF_RANGE);
	}

	slice_us = in->slice_us;
	if (slice_us < SYRUP_SCX_MIN_SLICE_US)
		slice_us = SYRUP_SCX_MIN_SLICE_US;
	if (slice_us > SYRUP_SCX_MAX_SLICE_US)
		slice_us = SYRUP_SCX_MAX_SLICE_US;

	has_cpu = t->state & SYRUP_SCX_IDLE_CPU;
	place = to_core ? CORE_PLACE | cpu : queue;
	t->state = syrup_preempt ? SYRUP_SCX_PREEMPTS : 0;
	t->queue = queue;
	t->place = place;
	slice_ns = grant(t, slice_us * 1000ULL);
	home = to_core ? (s32)cpu : home_of(p, app, scx_bpf_task_cpu(p));
	insert(p, syrup_slot, place, home, slice_ns, in->rank, enq_flags);
	if (to_core)
		scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
	else
		call_cpu(p, app, syrup_slot, queue, syrup_preempt, has_cpu, enq_flags);
}

SEC(".struct_ops.link")
struct sched_ext_ops syrup_policy_ops = {
	.enqueue = (void *)syrup_policy,
	.name = "syrup_policy",
};
