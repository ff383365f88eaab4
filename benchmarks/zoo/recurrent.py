"""LSTM, GRU and RNN, as modules, as cells and by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.zoo.blocks import conv_bn_relu
from benchmarks.zoo.case import Case, normal, tokens
from torch import nn

THEME = "recurrent"


class LastOutput(nn.Module):
    """The output at the last step feeds the head."""

    def __init__(self, kind, hidden=12, **options):
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.rnn = kind(10, hidden, batch_first=True, **options)
        width = (options.get("proj_size") or hidden) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        output, _ = self.rnn(F.relu(self.embed(x)))
        return self.head(output[:, -1])


class AllOutputs(LastOutput):
    """A label per step."""

    def forward(self, x):
        output, _ = self.rnn(self.embed(x))
        return self.head(output)


class FlattenedOutputs(nn.Module):
    """All steps side by side."""

    def __init__(self):
        super().__init__()
        self.rnn, self.fc, self.head = (
            nn.GRU(6, 12, batch_first=True),
            nn.Linear(12 * 8, 20),
            nn.Linear(20, 5),
        )

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.head(F.relu(self.fc(output.reshape(output.size(0), -1))))


class SequenceFirst(nn.Module):
    """The default layout of torch, steps first."""

    def __init__(self, kind, hidden=14):
        super().__init__()
        self.rnn, self.head = kind(6, hidden, num_layers=2), nn.Linear(hidden, 5)

    def forward(self, x):
        output, _ = self.rnn(x.transpose(0, 1))
        return self.head(output[-1])


class LastState(nn.Module):
    """Embedded tokens; the last layer's final states of both directions, joined."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 10)
        self.lstm = nn.LSTM(10, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.fc, self.head = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, ids):
        _, (hidden, _) = self.lstm(self.embedding(ids))
        return self.head(F.relu(self.fc(torch.cat([hidden[-2], hidden[-1]], dim=1))))


class StateAndCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 14, batch_first=True), nn.Linear(28, 5)

    def forward(self, x):
        _, (hidden, cell) = self.lstm(x)
        return self.head(torch.cat([hidden.squeeze(0), cell.squeeze(0)], 1))


class SummedDirections(nn.Module):
    """Both directions are added: unit i of one goes with unit i of the other."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(6, 14, bidirectional=True, batch_first=True), nn.Linear(14, 5)

    def forward(self, x):
        output, _ = self.gru(x)
        forward, backward = output.chunk(2, dim=-1)
        return self.head((forward + backward).max(dim=1).values)


class TwoWidths(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTM(6, 18, batch_first=True), nn.LSTM(18, 11, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(11, 5)

    def forward(self, x):
        x, _ = self.first(x)
        x, _ = self.second(self.dropout(x))
        return self.head(x[:, -1, :])


class ResidualRnn(nn.Module):
    """The output is added to the input."""

    def __init__(self, width=14):
        super().__init__()
        self.embed, self.gru, self.head = (
            nn.Linear(6, width),
            nn.GRU(width, width, batch_first=True),
            nn.Linear(width, 5),
        )

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.gru(x)[0])


class InitialState(nn.Module):
    """The first state is learned, the first cell is made of another input."""

    def __init__(self, hidden=12):
        super().__init__()
        self.start, self.condition = nn.Parameter(torch.zeros(1, 1, hidden)), nn.Linear(4, hidden)
        self.lstm, self.head = nn.LSTM(6, hidden, batch_first=True), nn.Linear(hidden, 5)

    def forward(self, x, condition):
        start = self.start.expand(-1, x.shape[0], -1).contiguous()
        output, _ = self.lstm(x, (start, torch.tanh(self.condition(condition)).unsqueeze(0)))
        return self.head(output[:, -1])


class EncoderDecoder(nn.Module):
    """The encoder's final state starts the decoder."""

    def __init__(self, hidden=14):
        super().__init__()
        self.source, self.target = nn.Embedding(30, 9), nn.Embedding(20, 11)
        self.encoder, self.decoder = (
            nn.LSTM(9, hidden, batch_first=True),
            nn.LSTM(11, hidden, batch_first=True),
        )
        self.head = nn.Linear(hidden, 20)

    def forward(self, source, target):
        _, state = self.encoder(self.source(source))
        output, _ = self.decoder(self.target(target), state)
        return self.head(output)


class LstmAttention(nn.Module):
    """Additive attention over the steps, queried by the last state."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 14, batch_first=True)
        self.keys, self.query, self.score = nn.Linear(14, 10), nn.Linear(14, 10, bias=False), nn.Linear(10, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        output, (hidden, _) = self.lstm(x)
        scores = self.score(torch.tanh(self.keys(output) + self.query(hidden[-1]).unsqueeze(1)))
        return self.head((output * scores.softmax(dim=1)).sum(1))


class LstmSelfAttention(nn.Module):
    """``nn.MultiheadAttention`` over the outputs of an LSTM."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, bidirectional=True, batch_first=True)
        self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        x, _ = self.lstm(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Crnn(nn.Module):
    """Text recognition: columns of a feature map are the steps."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            conv_bn_relu(1, 10), nn.MaxPool2d((2, 1)), conv_bn_relu(10, 14), nn.MaxPool2d(2)
        )
        self.rnn, self.head = nn.LSTM(14 * 2, 12, bidirectional=True), nn.Linear(24, 8)

    def forward(self, x):
        x = self.cnn(x)
        rows, channels, height, width = x.size()
        x = x.permute(3, 0, 1, 2).reshape(width, rows, channels * height)
        output, _ = self.rnn(x)
        return F.log_softmax(self.head(output), dim=-1).transpose(0, 1)


class ConvLstm(nn.Module):
    """Gates from one convolution, taken apart by chunk, three steps unrolled."""

    def __init__(self, hidden=8):
        super().__init__()
        self.hidden, self.gates = hidden, nn.Conv2d(2 + hidden, 4 * hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 3, 1)

    def forward(self, frames):
        state = frames.new_zeros(frames.shape[0], self.hidden, *frames.shape[-2:])
        cell = torch.zeros_like(state)
        for step in range(frames.shape[1]):
            gates = self.gates(torch.cat([frames[:, step], state], dim=1))
            i, f, o, g = gates.chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
        return self.out(state)


class CellLoop(nn.Module):
    """A cell module in a Python loop, its state made of literal zeros."""

    def __init__(self, kind, hidden=12):
        super().__init__()
        self.cell, self.hidden, self.head = kind(6, hidden), hidden, nn.Linear(hidden, 5)

    def forward(self, x):
        state = torch.zeros(x.shape[0], self.hidden)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, torch.zeros(x.shape[0], self.hidden))
        outputs = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs, 1))


class MinimalGru(nn.Module):
    """A gated unit out of two Linears."""

    def __init__(self, hidden=14):
        super().__init__()
        self.gate, self.candidate = nn.Linear(6 + hidden, hidden), nn.Linear(6 + hidden, hidden)
        self.hidden, self.head = hidden, nn.Linear(hidden, 5)

    def forward(self, x):
        state = x.new_zeros(x.size(0), self.hidden)
        for step in range(x.size(1)):
            gate = torch.sigmoid(self.gate(torch.cat([x[:, step], state], 1)))
            candidate = torch.tanh(self.candidate(torch.cat([x[:, step], gate * state], 1)))
            state = torch.lerp(state, candidate, gate)
        return self.head(state)


class TiedLanguageModel(nn.Module):
    """Embedding, LSTM projected to the embedding's width, head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(30, 10), nn.LSTM(10, 16, proj_size=10, batch_first=True)
        self.head = nn.Linear(10, 30)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0])


class ConvThenGru(nn.Module):
    """Speech: convolutions over time, then a GRU with its steps last, first and back."""

    def __init__(self):
        super().__init__()
        self.conv, self.gru = nn.Conv1d(6, 14, 3, padding=1), nn.GRU(14, 12, batch_first=True)
        self.out, self.head = nn.Conv1d(12, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x):
        x = F.relu(self.conv(x.transpose(1, 2)))
        x, _ = self.gru(x.transpose(1, 2))
        return self.head(F.relu(self.out(x.permute(0, 2, 1))).mean(-1))


SEQUENCE = normal((8, 6))


def last(kind, **options):
    return lambda: LastOutput(kind, **options)


CASES = (
    Case("lstm", THEME, last(nn.LSTM), SEQUENCE),
    Case("lstm_two_layers", THEME, last(nn.LSTM, num_layers=2), SEQUENCE),
    Case("lstm_three_layers", THEME, lambda: AllOutputs(nn.LSTM, num_layers=3, dropout=0.2), SEQUENCE),
    Case("lstm_bidirectional", THEME, lambda: AllOutputs(nn.LSTM, bidirectional=True), SEQUENCE),
    Case("lstm_bidirectional_two", THEME, last(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCE),
    Case("lstm_proj", THEME, last(nn.LSTM, proj_size=7), SEQUENCE),
    Case("lstm_proj_two", THEME, last(nn.LSTM, proj_size=7, num_layers=2, bidirectional=True), SEQUENCE),
    Case("lstm_no_bias", THEME, last(nn.LSTM, bias=False), SEQUENCE),
    Case("lstm_sequence_first", THEME, lambda: SequenceFirst(nn.LSTM), SEQUENCE),
    Case("lstm_last_state", THEME, LastState, tokens(30, 9)),
    Case("lstm_state_and_cell", THEME, StateAndCell, SEQUENCE),
    Case("lstm_two_widths", THEME, TwoWidths, SEQUENCE),
    Case("lstm_initial_state", THEME, InitialState, normal((8, 6), (4,))),
    Case("lstm_attention", THEME, LstmAttention, SEQUENCE),
    Case("lstm_self_attention", THEME, LstmSelfAttention, SEQUENCE),
    Case("lstm_tied", THEME, TiedLanguageModel, tokens(30, 7)),
    Case("gru", THEME, last(nn.GRU), SEQUENCE),
    Case("gru_two_layers", THEME, last(nn.GRU, num_layers=2), SEQUENCE),
    Case("gru_three_layers", THEME, last(nn.GRU, num_layers=3, bidirectional=True), SEQUENCE),
    Case("gru_sequence_first", THEME, lambda: SequenceFirst(nn.GRU), SEQUENCE),
    Case("gru_summed_directions", THEME, SummedDirections, SEQUENCE),
    Case("gru_flattened", THEME, FlattenedOutputs, SEQUENCE),
    Case("gru_residual", THEME, ResidualRnn, SEQUENCE),
    Case("rnn_tanh", THEME, last(nn.RNN), SEQUENCE),
    Case("rnn_relu", THEME, last(nn.RNN, nonlinearity="relu", num_layers=2), SEQUENCE),
    Case("encoder_decoder", THEME, EncoderDecoder, tokens(20, 7, 5)),
    Case("crnn", THEME, Crnn, normal((1, 8, 16))),
    Case("conv_gru", THEME, ConvThenGru, SEQUENCE),
    Case("conv_lstm", THEME, ConvLstm, normal((3, 2, 8, 8))),
    Case("lstm_cell", THEME, lambda: CellLoop(nn.LSTMCell), SEQUENCE),
    Case("gru_cell", THEME, lambda: CellLoop(nn.GRUCell), SEQUENCE),
    Case("minimal_gru", THEME, MinimalGru, SEQUENCE),
)
