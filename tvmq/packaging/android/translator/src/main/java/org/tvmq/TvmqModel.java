// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

/**
 * A verified artifact: weights, kernels, self-test passed. All threads may use it; each opens a session of its own, and
 * all sessions share the mapped weights.
 */
public final class TvmqModel implements AutoCloseable {
    private long handle;

    /**
     * Opens an artifact folder.
     *
     * @param isa an ISA level instead of the CPU's best, or null.
     * @param installed whether its libraries are the application's native libraries and not in the folder.
     */
    public TvmqModel(String path, String isa, boolean installed) {
        handle = Native.load(Native.bytes(path), Native.bytes(isa), installed);
    }

    /** A fact of the manifest ("isa", "task", "name", "labels.0", see tvmq.h), or null. */
    public synchronized String info(String key) {
        return Native.text(Native.info(handle, Native.bytes(key)));
    }

    /** A number of the manifest, such as "generation.eos_token_id". */
    public synchronized double number(String key, double otherwise) {
        return Native.number(handle, Native.bytes(key), otherwise);
    }

    /** A session whose kernels run on a number of threads. */
    public synchronized TvmqSession open(int threads) {
        return new TvmqSession(Native.open(handle, threads));
    }

    /** Gives the model back; its memory goes with the last of its sessions. */
    @Override
    public synchronized void close() {
        Native.unload(handle);
        handle = 0;
    }
}
