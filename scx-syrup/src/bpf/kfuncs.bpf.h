/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's side of sched_ext: vmlinux.h, the kfuncs that are used, and the
 * compat layer of the scx project for kfuncs that were renamed.
 *
 * <scx/common.bpf.h> is not included: it brings a fentry program into every
 * object that includes it, and replaces the SCX_* enumerators by variables that
 * only the loader of scx_utils fills in. Objects here are opened by plain
 * libbpf, so enumerators whose value may differ between kernels are read with
 * ENUM(), which libbpf relocates.
 */
#ifndef SYRUP_SCX_KFUNCS_BPF_H
#define SYRUP_SCX_KFUNCS_BPF_H

#define BPF_NO_KFUNC_PROTOTYPES /* vmlinux.h's lack the address spaces of some arguments */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define ENUM(type, name)                                                                           \
	(bpf_core_enum_value_exists(enum type, name) ? bpf_core_enum_value(enum type, name) : 0)

#define EOPNOTSUPP      95
#define CLOCK_MONOTONIC 1
#define SCHED_FIFO      1
#define SCHED_RR        2
#define SCHED_EXT       7
#define PF_EXITING      0x00000004
#define PF_KTHREAD      0x00200000

extern int LINUX_KERNEL_VERSION __kconfig;

s32 scx_bpf_create_dsq(u64 dsq_id, s32 node) __ksym;
s32 scx_bpf_dsq_nr_queued(u64 dsq_id) __ksym;
void scx_bpf_kick_cpu(s32 cpu, u64 flags) __ksym;
bool scx_bpf_test_and_clear_cpu_idle(s32 cpu) __ksym;
s32 scx_bpf_pick_idle_cpu(const cpumask_t *cpus_allowed, u64 flags) __ksym;
s32 scx_bpf_task_cpu(const struct task_struct *p) __ksym;
const struct cpumask *scx_bpf_get_online_cpumask(void) __ksym;
void scx_bpf_put_cpumask(const struct cpumask *cpumask) __ksym;
u32 scx_bpf_nr_cpu_ids(void) __ksym __weak;
struct task_struct *bpf_task_from_pid(s32 pid) __ksym;
struct task_struct *bpf_task_from_vpid(s32 vpid) __ksym;
void bpf_task_release(struct task_struct *p) __ksym;
void bpf_rcu_read_lock(void) __ksym;
void bpf_rcu_read_unlock(void) __ksym;
bool bpf_cpumask_test_cpu(u32 cpu, const struct cpumask *cpumask) __ksym;
u32 bpf_cpumask_any_and_distribute(const struct cpumask *one, const struct cpumask *other) __ksym;

extern const struct rq runqueues __ksym;

/* What <scx/compat.bpf.h> takes from <scx/common.bpf.h>. */
struct task_struct *scx_bpf_dsq_peek(u64 dsq_id) __ksym __weak;
int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, u64 dsq_id, u64 flags) __ksym __weak;
struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it) __ksym __weak;
void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it) __ksym __weak;
s32 __scx_bpf_select_cpu_and(struct task_struct *p, const struct cpumask *cpus_allowed,
			     struct scx_bpf_select_cpu_and_args *args) __ksym __weak;
bool __scx_bpf_dsq_insert_vtime(struct task_struct *p,
				struct scx_bpf_dsq_insert_vtime_args *args) __ksym __weak;
u64 scx_bpf_now(void) __ksym __weak;
struct rq *scx_bpf_cpu_rq(s32 cpu) __ksym __weak;
struct task_struct *scx_bpf_cpu_curr(s32 cpu) __ksym __weak;
#define BPF_FOR_EACH_ITER  (&___it)
#define scx_bpf_error(...) ((void)0)
#define __arena            /* of cid-form kfuncs, which are not used */

#include <scx/compat.bpf.h>

#undef scx_bpf_error
#undef __arena

#endif /* SYRUP_SCX_KFUNCS_BPF_H */
