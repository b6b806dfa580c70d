// SPDX-License-Identifier: Apache-2.0
package org.tvmq

import java.io.Closeable

/** An encoder: token ids in (special tokens included), vectors or scores out. One thread at a time. */
class Encoder(private val model: TvmqModel, threads: Int = 1) : Closeable {
    private val session = model.open(threads)

    /** A vector for a text. */
    fun embed(ids: IntArray): FloatArray = session.encode("embed", arrayOf(ids), null)[0]

    /** Scores of the labels of a text; label number n is `model.info("labels.n")`. */
    fun classify(ids: IntArray): FloatArray = session.encode("classify", arrayOf(ids), null)[0]

    /** Logits of the labels for every token of a text. */
    fun tag(ids: IntArray): Array<FloatArray> = session.encode("tag", arrayOf(ids), null)

    override fun close() = session.close()
}
