"""Build pykcm._native: CFFI, API mode, against the system's <linux/kcm.h> and <linux/bpf.h>."""

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

int pykcm_attach(int kcm_fd, int tcp_fd, int program_fd);
int pykcm_unattach(int kcm_fd, int tcp_fd);
int pykcm_clone(int kcm_fd);
ssize_t pykcm_sendmsg(int fd, void *const *buffers, const size_t *lengths, int count, int flags);
ssize_t pykcm_recvmsg(int fd, void *const *buffers, const size_t *lengths, int count, int flags,
                      int *message_flags);
int pykcm_sendmmsg(int fd, void *const *messages, const size_t *lengths, int count, int flags);
int pykcm_recvmmsg(int fd, char *buffer, size_t size, size_t room, int count, int flags,
                   unsigned int *lengths, int *message_flags);

#define BPF_PROG_TYPE_SOCKET_FILTER ...

struct bpf_insn { ...; };
struct bpf_prog_info {
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
                   unsigned int log_level);
int pykcm_bpf_load_functions(unsigned int type, const void *instructions, size_t count,
                             const char *license, const char *name, char *log, size_t log_size,
                             unsigned int log_level, const void *btf, size_t btf_size,
                             const void *functions, size_t function_count);
int pykcm_bpf_run(int fd, const void *data, size_t size, unsigned int repeat,
                  uint32_t *result, uint32_t *duration);
int pykcm_delineate_check(const struct bpf_insn *program, size_t count);
int64_t pykcm_delineate(const struct bpf_insn *program, const void *data, size_t size);
size_t pykcm_divide(const struct bpf_insn *program, const void *data, size_t size,
                    uint32_t *lengths, size_t room, size_t *used);

int pykcm_bpf_info(int fd, struct bpf_prog_info *info);
int pykcm_bpf_pin(int fd, const char *path);
int pykcm_bpf_get(const char *path);
const char *pykcm_bpf_helper_name(unsigned int number);
"""

PACKAGE = Path(__file__).parent / "pykcm"
SOURCES = ("native.c", "_functions.c")

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "pykcm._native",
    '#include "_delineate.h"\n'
    + "".join((PACKAGE / source).read_text(encoding="utf-8") for source in SOURCES),
    sources=["pykcm/_delineate.c"],
    define_macros=[("_GNU_SOURCE", None), ("Py_LIMITED_API", "0x030A0000")],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    include_dirs=["pykcm"],
    depends=[f"pykcm/{source}" for source in (*SOURCES, "_delineate.c", "_delineate.h")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
