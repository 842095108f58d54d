# SPDX-License-Identifier: MIT
"""Build pykcm._native: CFFI, API mode, against the system's <linux/kcm.h> and <linux/bpf.h>."""

import sysconfig
from pathlib import Path

from cffi import FFI

DECLARATIONS = """
#define AF_KCM ...
#define SOL_KCM ...
#define KCMPROTO_CONNECTED ...
#define KCM_RECV_DISABLE ...
#define SIOCKCMATTACH ...
#define SIOCKCMUNATTACH ...
#define SIOCKCMCLONE ...
#define MSG_BATCH ...
#define MSG_WAITFORONE ...
#define PYKCM_BATCH ...

int pykcm_attach(int kcm_fd, int tcp_fd, int program_fd, int *done);
int pykcm_unattach(int kcm_fd, int tcp_fd, int *attached);
int pykcm_clone(int kcm_fd);
int pykcm_clone_onto(int kcm_fd, int fd);
void pykcm_close(int *fd);
int pykcm_dup(int *fd, int other);
int pykcm_clone_owned(int *fd, int kcm_fd);
int pykcm_eventfd(int *fd);
int pykcm_timerfd(int *fd);
int pykcm_set_timer(int fd, long long nanoseconds);
int pykcm_set_event(int fd, int readable);
int pykcm_getsockopt(int fd, int level, int option, void *value, unsigned int *size);
int pykcm_serve_again(int fd);
int pykcm_set_disabled(int fd, int disabled);
int pykcm_setsockopt(int fd, int level, int option, const void *value, unsigned int size);
int pykcm_unread(int fd);
ssize_t pykcm_copy(void *to, const void *from, size_t size);
ssize_t pykcm_sendmsg(int fd, void *const *buffers, const size_t *lengths, int count, int flags);
ssize_t pykcm_recvmsg(int fd, void *const *buffers, const size_t *lengths, int count, int flags,
                      int *message_flags);
int pykcm_sendmmsg(int fd, void *const *messages, const size_t *lengths, int count, int flags);
int pykcm_recvmmsg(int fd, char *buffer, size_t size, size_t room, int count, int flags,
                   unsigned int *lengths, int *message_flags);

#define BPF_PROG_TYPE_SOCKET_FILTER ...

struct bpf_insn { ...; };
struct pykcm_program_info {
    uint32_t type;
    uint32_t id;
    uint8_t tag[...];
    uint32_t jited_prog_len;
    uint32_t xlated_prog_len;
    uint64_t jited_prog_insns;
    uint64_t xlated_prog_insns;
    uint64_t load_time;
    char name[...];
    uint32_t verified_insns;
    ...;
};

int pykcm_bpf_load(unsigned int type, const void *instructions, size_t count,
                   const char *license, const char *name, char *log, size_t log_size,
                   unsigned int log_level, const void *btf, size_t btf_size,
                   const void *functions, size_t function_count, const char *token_path,
                   uint64_t *told);
int pykcm_is_bpf_file_system(const char *path);
int pykcm_bpf_run(int fd, const void *data, size_t size, unsigned int repeat,
                  uint32_t *result, uint32_t *duration);
int pykcm_delineate_check(const struct bpf_insn *program, size_t count);
int64_t pykcm_delineate(const struct bpf_insn *program, const void *data, size_t size);
size_t pykcm_divide(const struct bpf_insn *program, const void *data, size_t size,
                    uint32_t *lengths, size_t room, size_t *used);

int pykcm_bpf_info(int fd, struct pykcm_program_info *info);
int pykcm_bpf_pin(int fd, const char *path);
int pykcm_bpf_get(const char *path);
int pykcm_bpf_by_id(uint32_t id);
int pykcm_bpf_next_id(uint32_t id, uint32_t *next);
const char *pykcm_bpf_helper_name(unsigned int number);
"""

# A free-threaded Python has no limited API; cffi then ignores py_limited_api by itself.
LIMITED = [] if sysconfig.get_config_var("Py_GIL_DISABLED") else [("Py_LIMITED_API", "0x030A0000")]

PACKAGE = Path(__file__).parent / "pykcm"

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "pykcm._native",
    '#include "_delineate.h"\n' + (PACKAGE / "native.c").read_text(encoding="utf-8"),
    sources=["pykcm/_delineate.c"],
    define_macros=[("_GNU_SOURCE", None), *LIMITED],
    extra_compile_args=[
        "-O2",
        f"-ffile-prefix-map={Path.cwd()}=.",  # as in setup.py
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ],
    include_dirs=["pykcm"],
    depends=["pykcm/native.c", "pykcm/_delineate.c", "pykcm/_delineate.h", "pykcm/_serving.h"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
