// SPDX-License-Identifier: Apache-2.0
package org.tvmq

import java.io.Closeable

/**
 * A translation model: token ids in, token ids out. One thread at a time; for more, give each a Translator of the same
 * [TvmqModel], which [InstalledArtifact] opens.
 *
 * Text and ids are the application's: build SentencePiece (C++) into it, read source.spm and pieces.txt beside the
 * artifact, and do what example.cpp of `tvmq package --linux` does:
 *
 *     val ids = (sentencePiece.encodeAsPieces(text).map { idOf[it] ?: unknown } + endToken).toIntArray()
 *     val text = sentencePiece.decodePieces(translator.translate(ids).filter { it != endToken }.map { pieces[it] })
 */
class Translator(model: TvmqModel, threads: Int = 1) : Closeable {
    private val session = model.open(threads)

    /**
     * The best translation of a sentence, whose end token is the last of [ids].
     *
     * @param beams hypotheses; 1 is greedy search.
     * @param onToken hears every token as it comes (greedy search) and stops the translation by false.
     */
    fun translate(ids: IntArray, beams: Int = 1, onToken: ((Int) -> Boolean)? = null): IntArray {
        val listener = onToken?.let { heard -> TokenListener { _, id -> heard(id) } }
        session.set("beams", beams.toDouble())
        session.translate(arrayOf(ids), listener)
        return session.result(0, 0)
    }

    /** Longest output in tokens, instead of the model's own. */
    fun limit(tokens: Int) = session.set("max_new_tokens", tokens.toDouble())

    /** Stops a running translation, from any thread. */
    fun cancel() = session.cancel()

    override fun close() = session.close()
}
