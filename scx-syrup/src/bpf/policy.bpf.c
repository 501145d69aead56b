// SPDX-License-Identifier: GPL-2.0-only
/*
 * The trusted half of a thread policy: what runs before and after the user's
 * schedule(). The root scheduler has filled the input; here the verdict becomes a
 * choice, which the root scheduler, that goes on afterwards, counts and enforces.
 *
 * The struct_ops map below is created and never attached. It tells libbpf which
 * member of sched_ext_ops the program is for; the program lives in the root
 * scheduler's PROG_ARRAY. The constants are written into the object before it
 * is opened, so they change together with the program and a replacement is
 * one step.
 */
#include "shared.bpf.h"

char _license[] SEC("license") = "GPL";

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
	struct syrup_choice *choice;
	struct syrup_thread *in;
	u32 zero = 0, cpu;
	__s32 verdict;

	in = bpf_map_lookup_elem(&syrup_input, &zero);
	choice = bpf_map_lookup_elem(&syrup_choice, &zero);
	if (!in || !choice)
		return; /* cannot be: the root scheduler has just used both */

	verdict = schedule(in);

	choice->preempt = syrup_preempt;
	if (verdict == SYRUP_PASS) {
		choice->counter = SYRUP_PASSED;
		return;
	}
	if (verdict < 0 || (u32)verdict >= syrup_nr_executors) {
		/* SYRUP_DROP as well: a thread cannot be discarded. */
		choice->counter = SYRUP_OUT_OF_RANGE;
		return;
	}
	choice->place = verdict % SYRUP_MAX_QUEUES;
	if (syrup_is_cores) {
		cpu = syrup_cpu_of[verdict % SYRUP_MAX_CPUS];
		if (!bpf_cpumask_test_cpu(cpu, p->cpus_ptr) || !is_online(cpu)) {
			/* The thread's own affinity excludes that core, or it is offline. */
			choice->counter = SYRUP_ENFORCE_FAILED;
			return;
		}
		choice->place = CORE_PLACE | cpu;
	}
	choice->counter = SYRUP_CHOSEN;
	count_verdict(verdict);
}

SEC(".struct_ops.link")
struct sched_ext_ops syrup_policy_ops = {
	.enqueue = (void *)syrup_policy,
	.name = "syrup_policy",
};
