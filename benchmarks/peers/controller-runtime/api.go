package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
)

var groupVersion = schema.GroupVersion{Group: "flotilla.dev", Version: "v1alpha1"}

const modelDeploymentKind = "ModelDeployment"

// addToScheme registers the part of Flotilla's API that this operator reads.
func addToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(groupVersion, &ModelDeployment{}, &ModelDeploymentList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	return nil
}

// ModelDeployment has the fields that the plan needs; the CRD defaults them.
type ModelDeployment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ModelDeploymentSpec   `json:"spec"`
	Status ModelDeploymentStatus `json:"status,omitempty"`
}

type ModelDeploymentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ModelDeployment `json:"items"`
}

type ModelDeploymentSpec struct {
	Model       ModelSource      `json:"model"`
	Engine      EngineSpec       `json:"engine"`
	Accelerator AcceleratorSpec  `json:"accelerator"`
	Scaling     ScalingSpec      `json:"scaling"`
	Cost        CostSpec         `json:"cost"`
	Quant       QuantizationSpec `json:"quantization"`
}

type ModelSource struct {
	Source string `json:"source"`
}

type EngineSpec struct {
	Name string `json:"name"`
}

type AcceleratorSpec struct {
	Class string `json:"class"`
}

type ScalingSpec struct {
	MinReplicas int32  `json:"minReplicas"`
	MaxReplicas int32  `json:"maxReplicas"`
	Mode        string `json:"mode"`
}

type CostSpec struct {
	CompareWith []HostedModel `json:"compareWith,omitempty"`
}

type HostedModel struct {
	Provider string `json:"provider"`
	Model    string `json:"model"`
	Mode     string `json:"mode"`
}

type QuantizationSpec struct {
	Method  string `json:"method"`
	KVCache string `json:"kvCache"`
}

type ModelDeploymentStatus struct {
	ObservedGeneration int64              `json:"observedGeneration"`
	Conditions         []metav1.Condition `json:"conditions"`
	Replicas           int32              `json:"replicas"`
	ReadyReplicas      int32              `json:"readyReplicas"`
	ReadySummary       string             `json:"readySummary"`
	Selector           string             `json:"selector"`
	Endpoint           string             `json:"endpoint"`
	Engine             EngineStatus       `json:"engine"`
	Accelerator        AcceleratorStatus  `json:"accelerator"`
	Quantization       QuantizationSpec   `json:"quantization"`
	Fit                FitStatus          `json:"fit"`
	Scaling            ScalingStatus      `json:"scaling"`
	Cost               CostStatus         `json:"cost"`
}

type EngineStatus struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Image   string `json:"image"`
}

type AcceleratorStatus struct {
	Class    string `json:"class"`
	Count    int32  `json:"count"`
	Resource string `json:"resource"`
}

type FitStatus struct {
	Verdict              string `json:"verdict"`
	WeightsMiB           int32  `json:"weightsMib"`
	WorkingMiB           int32  `json:"workingMib"`
	KVCacheMiB           int32  `json:"kvCacheMib"`
	ContextLength        int32  `json:"contextLength"`
	LongestContextLength int32  `json:"longestContextLength"`
	ConcurrentRequests   int32  `json:"concurrentRequests"`
}

type ScalingStatus struct {
	Mode            string `json:"mode"`
	DesiredReplicas int32  `json:"desiredReplicas"`
}

type CostStatus struct {
	GPUHourlyPrice string             `json:"gpuHourlyPrice"`
	PriceSource    string             `json:"priceSource"`
	PriceAsOf      string             `json:"priceAsOf"`
	Comparators    []ComparatorStatus `json:"comparators,omitempty"`
}

type ComparatorStatus struct {
	HostedModel         `json:",inline"`
	Source              string `json:"source"`
	InputTokensPercent  int32  `json:"inputTokensPercent"`
	OutputTokensPercent int32  `json:"outputTokensPercent"`
}

// ModelDeploymentApplyConfiguration is what the status subresource is applied with.
type ModelDeploymentApplyConfiguration struct {
	metav1ac.TypeMetaApplyConfiguration    `json:",inline"`
	*metav1ac.ObjectMetaApplyConfiguration `json:"metadata,omitempty"`

	Status *ModelDeploymentStatus `json:"status,omitempty"`
}

func (b *ModelDeploymentApplyConfiguration) IsApplyConfiguration() {}
func (b *ModelDeploymentApplyConfiguration) GetKind() *string      { return b.Kind }
func (b *ModelDeploymentApplyConfiguration) GetAPIVersion() *string {
	return b.APIVersion
}
func (b *ModelDeploymentApplyConfiguration) GetName() *string      { return b.Name }
func (b *ModelDeploymentApplyConfiguration) GetNamespace() *string { return b.Namespace }

// The rest is what controller-gen would write.

func (in *ModelDeployment) DeepCopyObject() runtime.Object { return in.DeepCopy() }

func (in *ModelDeployment) DeepCopy() *ModelDeployment {
	out := new(ModelDeployment)
	in.DeepCopyInto(out)
	return out
}

func (in *ModelDeployment) DeepCopyInto(out *ModelDeployment) {
	*out = *in
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Cost.CompareWith = append([]HostedModel(nil), in.Spec.Cost.CompareWith...)
	out.Status.Cost.Comparators = append([]ComparatorStatus(nil), in.Status.Cost.Comparators...)
	if in.Status.Conditions != nil {
		out.Status.Conditions = make([]metav1.Condition, len(in.Status.Conditions))
		for i := range in.Status.Conditions {
			in.Status.Conditions[i].DeepCopyInto(&out.Status.Conditions[i])
		}
	}
}

func (in *ModelDeploymentList) DeepCopyObject() runtime.Object {
	out := &ModelDeploymentList{TypeMeta: in.TypeMeta, Items: make([]ModelDeployment, len(in.Items))}
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range in.Items {
		in.Items[i].DeepCopyInto(&out.Items[i])
	}
	return out
}
