package main

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	loading = "The engine is starting and loads the model."
	gpu     = "built-in: AWS g6.xlarge us-east-1"
)

// status is as large as Flotilla's, with the same conditions; what Flotilla computes is fixed here.
func status(md *ModelDeployment, live *appsv1.Deployment, pods []corev1.Pod, taken *nameTaken) ModelDeploymentStatus {
	wanted := replicas(md)
	result := ModelDeploymentStatus{
		ObservedGeneration: md.Generation,
		Conditions:         conditions(md, wanted, live.Status.ReadyReplicas, scheduled(pods), taken),
		Replicas:           live.Status.Replicas,
		ReadyReplicas:      live.Status.ReadyReplicas,
		ReadySummary:       fmt.Sprintf("%d/%d", live.Status.ReadyReplicas, wanted),
		Selector:           labelManagedBy + "=" + managedBy + "," + labelModel + "=" + md.Name,
		Endpoint:           fmt.Sprintf("http://%s.%s.svc:%d/v1", md.Name, md.Namespace, enginePort),
		Engine:             EngineStatus{Name: md.Spec.Engine.Name, Version: engineVersion, Image: engineImage},
		Accelerator:        AcceleratorStatus{Class: md.Spec.Accelerator.Class, Count: 1, Resource: gpuResource},
		Quantization:       QuantizationSpec{Method: "fp8", KVCache: "auto"},
		Fit: FitStatus{Verdict: "Fits", WeightsMiB: 8380, WorkingMiB: 1831, KVCacheMiB: 10985,
			ContextLength: contextLength, LongestContextLength: contextLength, ConcurrentRequests: 6},
		Scaling: ScalingStatus{Mode: md.Spec.Scaling.Mode, DesiredReplicas: wanted},
		Cost:    CostStatus{GPUHourlyPrice: "0.8048", PriceSource: gpu, PriceAsOf: "2026-11-09"},
	}
	for _, hosted := range md.Spec.Cost.CompareWith {
		result.Cost.Comparators = append(result.Cost.Comparators, ComparatorStatus{
			HostedModel: hosted, Source: "genai-prices 0.2.3", InputTokensPercent: 100, OutputTokensPercent: 100,
		})
	}
	return result
}

func scheduled(pods []corev1.Pod) (count int32) {
	for i := range pods {
		if pods[i].Spec.NodeName != "" {
			count++
		}
	}
	return count
}

func conditions(md *ModelDeployment, wanted, ready, scheduled int32, taken *nameTaken) []metav1.Condition {
	// SetStatusCondition keeps the transition time of what has not turned.
	result := md.DeepCopy().Status.Conditions
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&result, metav1.Condition{
			Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: md.Generation,
		})
	}
	set("CostKnown", metav1.ConditionTrue, "Priced", "One GPU costs 0.8048 USD/h ("+gpu+"), a list price: set your own"+
		" where you pay another; compared with openai/gpt-5-mini.")
	set("FitsMemory", metav1.ConditionTrue, "Fits", "There is room for 32768 tokens of context for 6.1 requests at one time.")
	switch {
	case taken != nil:
		set("ModelLoaded", metav1.ConditionUnknown, "NameTaken", taken.Error())
		set("Ready", metav1.ConditionFalse, "NameTaken", taken.Error())
		set("Reconciling", metav1.ConditionFalse, "NameTaken", taken.Error())
	case ready < wanted:
		set("ModelLoaded", metav1.ConditionFalse, "Loading", loading)
		set("Ready", metav1.ConditionFalse, "Loading", loading)
		set("Reconciling", metav1.ConditionTrue, "Loading", loading)
	default:
		set("ModelLoaded", metav1.ConditionTrue, "Loaded", "The engine has loaded the model.")
		set("Ready", metav1.ConditionTrue, "Ready", fmt.Sprintf("%d of %d replicas are ready.", ready, wanted))
		set("Reconciling", metav1.ConditionFalse, "Settled", "Nothing is left to do.")
	}
	set("ScalingActive", metav1.ConditionFalse, "NoReadyReplicas",
		"1 replica: kept, because no replica is ready and so there is no queue to read.")
	if scheduled < wanted {
		set("Scheduled", metav1.ConditionUnknown, "WaitingForScheduler", "The scheduler has not placed every pod yet.")
	} else {
		set("Scheduled", metav1.ConditionTrue, "Scheduled", "Every pod has a node.")
	}
	if taken != nil {
		set("SpecValid", metav1.ConditionFalse, "NameTaken", taken.Error())
		set("Stalled", metav1.ConditionTrue, "NameTaken", taken.Error())
	} else {
		set("SpecValid", metav1.ConditionTrue, "Valid", "The spec is accepted.")
		set("Stalled", metav1.ConditionFalse, "Progressing", "Nothing blocks the resource.")
	}
	return result
}
